"""Whole Dockerfiles, byte for byte.

After a change that is meant: `MLIMG_GOLDEN=write pytest tests/golden`, then read the diff.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlimg.plan import ServerPlan
from mlimg.render import render, render_with_model
from mlimg.template import find_template
from tests.support.plans import HANDLER, base_image, code, server_plan

GOLDEN = Path(__file__).parent
ROOT = GOLDEN.parent.parent


@pytest.fixture(autouse=True)
def no_shared_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is not to follow every change of the runtime's source."""
    monkeypatch.setattr("mlimg.template.shared_files", tuple)


def plan(name: str, **changes: object) -> ServerPlan:
    template = replace(find_template(name, Path), own_files=())
    return server_plan(template, **{"code": code(handler=HANDLER), **changes})


def sklearn() -> str:
    return render(plan("sklearn"), base_image()).dockerfile


def sklearn_with_every_setting() -> str:
    settings = plan(
        "sklearn",
        requirements=("scikit-learn==1.7.2",),
        options={"method": "predict_proba"},
        env={"OMP_NUM_THREADS": "2", "GREETING": 'a "quoted" $HOME\\ `id` # <<EOF'},
        index="https://mirror.example.com/simple",
        secrets=("netrc", "token"),
    )
    return render(settings, base_image("registry.example.com:5000/base/python:3.13")).dockerfile


def sklearn_with_model() -> str:
    return render_with_model(render(plan("sklearn"), base_image()), {"io.mlimg.model.name": "digits"})


def lightgbm() -> str:
    return render(plan("lightgbm"), base_image()).dockerfile


def pytorch() -> str:
    return render(plan("pytorch"), base_image()).dockerfile


def transformers() -> str:
    return render(plan("transformers"), base_image()).dockerfile


def xgboost() -> str:
    return render(plan("xgboost"), base_image()).dockerfile


def onnx() -> str:
    return render(plan("onnx"), base_image()).dockerfile


def tensorflow() -> str:
    return render(plan("tensorflow"), base_image()).dockerfile


def mlflow() -> str:
    return render(plan("mlflow"), base_image()).dockerfile


def with_base(name: str, **options: object) -> Callable[[], str]:
    """A template on the base that it names, which is not everybody's."""
    template = find_template(name, Path)
    return lambda: render(plan(name, options=options), base_image(template.base)).dockerfile


def python_on_a_base_of_the_engine() -> str:
    return render(plan("python"), base_image("lab/python:1", pinned="mlimg-base")).dockerfile


DOCKERFILES: dict[str, Callable[[], str]] = {
    "sklearn": sklearn,
    "sklearn-with-every-setting": sklearn_with_every_setting,
    "sklearn-with-model": sklearn_with_model,
    "lightgbm": lightgbm,
    "pytorch": pytorch,
    "transformers": transformers,
    "xgboost": xgboost,
    "mlflow": mlflow,
    "onnx": onnx,
    "tensorflow": tensorflow,
    "gguf": with_base("gguf"),
    "kserve": with_base("kserve"),
    "mlserver": with_base("mlserver"),
    "tfserving": with_base("tfserving"),
    "tfserving-with-batches": with_base("tfserving", max_batch_size=32, threads=2),
    "triton": with_base("triton"),
    "vllm": with_base("vllm"),
    "python-on-a-base-of-the-engine": python_on_a_base_of_the_engine,
}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_is_what_it_was(name: str) -> None:
    golden = GOLDEN / f"{name}.Dockerfile"
    text = DOCKERFILES[name]()
    if os.environ.get("MLIMG_GOLDEN") == "write":
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_every_golden_file_is_compared() -> None:
    assert {path.stem for path in GOLDEN.glob("*.Dockerfile")} == set(DOCKERFILES)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_passes_hadolint(name: str) -> None:
    # The private name of an engine's own base has no tag: the build maps it to an image by its ID.
    ignored = ["--ignore", "DL3006"] if name == "python-on-a-base-of-the-engine" else []
    assert hadolint(GOLDEN / f"{name}.Dockerfile", *ignored) == ""


def test_hadolint_is_at_work(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian:latest\nRUN cd /tmp && apt-get install x\n")
    assert "DL3007" in hadolint(bad)


def hadolint(path: Path, *arguments: str) -> str:
    """What hadolint has to say of a Dockerfile."""
    program = str(Path(sys.executable).with_name("hadolint"))
    command = [program, "--no-color", "--config", str(ROOT / ".hadolint.yaml"), *arguments, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout + found.stderr
