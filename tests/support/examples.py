"""An example as its reader would try it: trained, built in both patterns, served, and asked what its model knows.

`train.py` writes `model/` and what the framework itself answers: `held-out.csv` with `expected.csv`, or a V2 request
`request.json` with the outputs in `expected.json`. Of several models each has a `held-out-NAME.csv` and
`expected-NAME.csv`. A request with a `prompt` is for OpenAI's route of completions.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from mlimg.template import find_template
from tests.support.torch_index import TorchBuilds

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_BIN = Path(sys.executable).parent
_TRAIN_SECONDS = 600
# Other libraries sum in another order; a wrong answer is further off than this.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6


@dataclass
class Example:
    """A copy of an example in a folder of its own, under image names of its own."""

    folder: Path
    base: str
    torch: TorchBuilds | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        self.name = self.folder.name
        spec = spec_of(self.name)
        self.template = spec["server"]["template"]
        self.models = [model["name"] for model in spec.get("models", ())]  # none where there is one
        self.prefix = f"mlimg.local/example-{uuid.uuid4().hex[:8]}"
        if self.torch:
            self.environ = {**self.environ, **self.torch.environ}

    def train(self) -> None:
        """Run `train.py` with the packages that the example's requirements.txt names."""
        uv = [str(_BIN / "uv"), "run", "--quiet", "--no-project", "--python", sys.executable]
        links = ["--find-links", self.torch.find_links] if self.torch else []
        words = [*uv, "--with-requirements", "requirements.txt", *links, "train.py"]
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=_TRAIN_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def mlimg(self, command: str, *arguments: str) -> str:
        """What a command printed; it succeeds."""
        words = [str(_BIN / "mlimg"), command, *arguments]
        done = subprocess.run(words, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"mlimg {command}: {done.stderr}"
        return done.stdout

    def build(self, pattern: str) -> dict[str, Any]:
        """The release record of a build."""
        names = ["--set", f"image={self.prefix}/{self.name}", "--set", f"server.image={self.prefix}/server"]
        settings = ["--set", f"server.base={self.base}", *(self.torch.settings if self.torch else ())]
        words = ["build", "--json", "--pattern", pattern, *names, *settings]
        record: dict[str, Any] = json.loads(self.mlimg(*words))
        return record

    @contextmanager
    def served(self) -> Iterator[str]:
        """The last release, served; its address."""
        started = json.loads(self.mlimg("run", "--detach", "--port", "0", "--ready-timeout", "300", "--json"))
        try:
            yield started["url"]
        finally:
            self.mlimg("run", "--stop")

    def outputs(self, url: str, model: str = "") -> dict[str, list[Any]]:
        """What the server answers to the held-out rows, or to the request, by the outputs' names."""
        request = self.folder / "request.json"
        body = json.loads(request.read_bytes()) if request.exists() else {}
        if "prompt" in body:
            completed = urllib3.request("POST", f"{url}/v1/completions", json=body, timeout=120)
            assert completed.status == 200, completed.data
            return {"text": [choice["text"] for choice in completed.json()["choices"]]}
        asked = "request.json" if request.exists() else f"held-out-{model}.csv" if model else "held-out.csv"
        answer = json.loads(self.mlimg("predict", asked, "--json", *(["--model", model] if model else [])))
        return {output["name"]: output["data"] for output in answer["outputs"]}

    def expected(self, model: str = "") -> dict[str, list[Any]]:
        """What the framework answered, by name; a table has no name, and is the one output."""
        if (self.folder / "expected.json").exists():
            outputs = json.loads((self.folder / "expected.json").read_text())["outputs"]
            return {output["name"]: output["data"] for output in outputs}
        with (self.folder / (f"expected-{model}.csv" if model else "expected.csv")).open(newline="") as file:
            return {"": [_cell(text) for row in csv.reader(file) for text in row]}

    def check(self, url: str) -> None:
        """Ask the server, and see that its answers are the framework's."""
        for model in self.models or [""]:
            answered, expected = self.outputs(url, model), self.expected(model)
            if list(expected) == [""]:
                ((_, values),) = answered.items()
                answered = {"": values}
            assert answered.keys() == expected.keys()
            for name, values in expected.items():
                assert values, "nothing was compared"
                same(answered[name], values)

    # What is wrong

    def spoil(self, folder: Path, how: str) -> Path:
        """A copy of the model whose largest file is `empty`, `cut` in the middle, or a `text`."""
        shutil.copytree(self.folder / "model", folder)
        main = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        data = main.read_bytes()
        main.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"not what its name says\n"}[how])
        return folder

    def refused_by_check(self, model: Path) -> tuple[int, str]:
        """Status and errors of `mlimg check` of another model."""
        words = [str(_BIN / "mlimg"), "check", "--quiet", "--set", f"model.source={model}", "--allow-path", str(model)]
        done = subprocess.run(words, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    def refused_by_server(self, model: Path) -> tuple[int, str]:
        """Status and errors of the last release's server with another model mounted."""
        record = json.loads((self.folder / ".mlimg" / "release.json").read_text())
        # A server that takes the model after all is stopped.
        words = ["timeout", "200", "docker", "run", "--rm", "--volume", f"{model}:/mnt/models:ro"]
        done = subprocess.run(
            [*words, record["server"]["reference"]],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode, "".join(line for line in done.stderr.splitlines(keepends=True) if "error" in line)

    def remove(self) -> None:
        """Take its images out of the engine."""
        listed = subprocess.run(
            ["docker", "image", "ls", "--quiet", "--filter", f"reference={self.prefix}/*"],
            env=self.environ, capture_output=True, text=True, check=True,
        )  # fmt: skip
        if images := set(listed.stdout.split()):
            subprocess.run(
                ["docker", "image", "rm", "--force", *images], env=self.environ, check=False, capture_output=True
            )


def spec_of(name: str) -> dict[str, Any]:
    """An example's spec, as it is written."""
    spec: dict[str, Any] = yaml.safe_load((EXAMPLES / name / "mlimg.yaml").read_text())
    return spec


def python_of(name: str) -> str:
    """The Python of the base image that the example's template names."""
    template = spec_of(name)["server"]["template"]
    base = find_template(template, lambda written: EXAMPLES / name / written).base
    return base.removeprefix("python:").removesuffix("-slim")


def needs_torch(name: str) -> bool:
    """Whether training or serving the example installs PyTorch."""
    return "torch==" in (EXAMPLES / name / "requirements.txt").read_text()


def copy(name: str, folder: Path, base: str, torch: TorchBuilds | None = None) -> Example:
    """An example as a clone has it: without what training and building leave."""
    left = shutil.ignore_patterns(".mlimg", "model", "held-out*.csv", "expected*", "request.json", "__pycache__")
    shutil.copytree(EXAMPLES / name, folder / name, ignore=left)
    return Example(folder / name, base, torch)


def same(answered: Sequence[Any], expected: Sequence[Any]) -> None:
    """Numbers that differ by rounding alone, and texts that do not differ. Raises AssertionError."""
    assert len(answered) == len(expected)
    if isinstance(expected[0], str):
        assert [str(value) for value in answered] == list(expected)
    else:
        assert [float(value) for value in answered] == pytest.approx(expected, rel=_RELATIVE, abs=_ABSOLUTE)


def _cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
