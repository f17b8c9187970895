"""A project folder with a spec and a small model, built by the console script as its user would."""

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.support.engines import Engine
from tests.support.servers import ask, rows

MLIMG = Path(sys.executable).with_name("mlimg")
LOCAL = "mlimg.local"
NOWHERE = "unix:///nowhere/docker.sock"
INPUTS_LABEL = "io.mlimg.server.inputs"
# Wide enough for a few hundred kilobytes; whole numbers, so that every machine's arithmetic agrees.
WIDTH = 64

HANDLER = """\
import json

import numpy as np


def load(model_dir, options):
    return np.array(json.loads((model_dir / "weights.json").read_text()), dtype=float)


def predict(model, inputs):
    return {"scores": inputs["input"] @ model}
"""


@dataclass(frozen=True)
class Done:
    """What a command left."""

    status: int
    stdout: str
    stderr: str

    @property
    def release(self) -> dict[str, Any]:
        """The record that `--json` printed."""
        assert self.status == 0, self.stderr
        value: dict[str, Any] = json.loads(self.stdout)
        return value

    @property
    def last_line(self) -> str:
        return self.stderr.splitlines()[-1]


@dataclass
class Project(AbstractContextManager["Project"]):
    """A folder of its own, and names of its own in engine and registry; both are free of it afterwards."""

    folder: Path
    engine: Engine
    base: str
    cache: Path
    registry: str = LOCAL
    spec: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"release-{uuid.uuid4().hex[:8]}"
        self.prefix = f"{self.registry}/{self.name}"
        self.spec = {
            "image": f"{self.prefix}/scores",
            "server": {
                "template": "python",
                "image": f"{self.prefix}/server",
                "version": "1.0",
                "base": self.base,
                "code": "./serve",
            },
            "model": {"version": "1", "source": "./model"},
        }
        if self.registry != LOCAL:
            self.spec["model"]["store"] = f"oci://{self.prefix}/models"
            self.spec["build"] = {"platform": "linux/amd64"}
        self.folder.mkdir(parents=True)
        (self.folder / "serve").mkdir()
        (self.folder / "serve" / "handler.py").write_text(HANDLER)
        self.environ = self.engine.env | {"XDG_CACHE_HOME": str(self.cache)}
        self.train(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for image in self.images():
            with suppress(RuntimeError):
                self.engine.docker("image", "rm", "--force", image)

    # What the user has

    def train(self, seed: int) -> list[list[float]]:
        """Write another model, and return its weights."""
        weights = [[float((row * 7 + column * 3 + seed * 11) % 17 - 8) for column in range(3)] for row in range(WIDTH)]
        (self.folder / "model").mkdir(exist_ok=True)
        (self.folder / "model" / "weights.json").write_text(json.dumps(weights))
        return weights

    def set(self, **settings: object) -> None:
        """Write settings into the spec; `model__version="2"` is that of `model:`."""
        for key, value in settings.items():
            section, _, name = key.rpartition("__")
            (self.spec[section] if section else self.spec)[name] = value

    # What the user does

    def mlimg(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Done:
        """Run the console script in the project's folder."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environ | (environ or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def command(self, *arguments: str) -> list[str]:
        """The console script with arguments, after the spec has been written as it is now."""
        (self.folder / "mlimg.yaml").write_text(yaml.safe_dump(self.spec, sort_keys=False))
        return [str(MLIMG), *arguments]

    def build(self, pattern: str, *arguments: str, environ: Mapping[str, str] | None = None) -> Done:
        """`mlimg build --json`."""
        return self.mlimg("build", "--json", "--pattern", pattern, *arguments, environ=environ)

    def answer(self, inputs: Sequence[Sequence[float]]) -> list[float]:
        """Run the last release, ask it, and stop it."""
        ran = self.mlimg("run", "--detach", "--port", "0", "--ready-timeout", "60", "--json")
        assert ran.status == 0, ran.stderr
        try:
            port = int(json.loads(ran.stdout)["url"].rpartition(":")[2])
            return infer(port, "scores", inputs)
        finally:
            self.mlimg("run", "--stop")

    # What is there afterwards

    def images(self) -> list[str]:
        """The names that this project has in the engine."""
        names = self.engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
        return [name for name in names if name.startswith(f"{self.prefix}/") and not name.endswith(":<none>")]

    def inspect(self, reference: str) -> dict[str, Any]:
        """What `docker image inspect` says."""
        (value,) = json.loads(self.engine.docker("image", "inspect", reference))
        assert isinstance(value, dict)
        return value


def infer(port: int, model: str, inputs: Sequence[Sequence[float]]) -> list[float]:
    """What a server answers to one input named `input`, read off one output."""
    reply = ask(port, f"/v2/models/{model}/infer", rows([list(row) for row in inputs], name="input"))
    assert reply.status == 200, reply.json
    (output,) = reply.json["outputs"]
    data: list[float] = output["data"]
    return data


def wait_until_ready(port: int, seconds: float = 60) -> None:
    """Until the server on a port of this machine is ready."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError, HTTPException):
            if ask(port, "/v2/health/ready").status == 200:
                return
        assert time.monotonic() < deadline, "never ready"
        time.sleep(0.05)


def expected(weights: Sequence[Sequence[float]], inputs: Sequence[Sequence[float]]) -> list[float]:
    """What the model itself answers, as the protocol lays it out."""
    columns = range(len(weights[0]))
    return [sum(x * weights[row][column] for row, x in enumerate(values)) for values in inputs for column in columns]


def some_inputs(count: int = 3) -> list[list[float]]:
    """Rows that fit the model."""
    return [[float((row + column) % 5) for column in range(WIDTH)] for row in range(count)]


_ACCESS = re.compile(r'"(GET|HEAD|PUT|POST|PATCH|DELETE) (\S+) HTTP/1\.[01]" (\d{3})')


@dataclass(frozen=True)
class Asked:
    """One line of a registry's access log."""

    method: str
    path: str
    status: int


@dataclass
class RegistryLog:
    """What a registry has logged of one project, since it was last looked at."""

    host: str
    container: str
    project: str
    _seen: int = 0

    def news(self) -> "News":
        """Everything since the last call."""
        done = subprocess.run(
            ["docker", "logs", self.container],
            env=os.environ | {"DOCKER_HOST": self.host},
            check=True,
            capture_output=True,
            text=True,
        )
        found = [Asked(m[1], m[2], int(m[3])) for m in _ACCESS.finditer(done.stdout + done.stderr)]
        ours = [asked for asked in found if f"/v2/{self.project}/" in asked.path]
        new, self._seen = ours[self._seen :], len(ours)
        return News(new)


@dataclass(frozen=True)
class News:
    """What clients did to a registry."""

    asked: list[Asked]

    @property
    def writes(self) -> list[Asked]:
        """All that changes anything, or tries to."""
        return [asked for asked in self.asked if asked.method not in {"GET", "HEAD"}]

    def uploaded(self, repository: str = "") -> list[str]:
        """The digests of the blobs whose bytes were sent, whoever sent them."""
        commits = [a for a in self._stored("PUT", repository) if "/blobs/uploads/" in a.path]
        return [_parameter(asked.path, "digest") for asked in commits]

    def mounted(self, repository: str = "") -> list[str]:
        """The digests of the blobs that came from another repository."""
        mounts = [asked for asked in self._stored("POST", repository) if "mount=" in asked.path]
        return [_parameter(asked.path, "mount") for asked in mounts]

    def _stored(self, method: str, repository: str) -> list[Asked]:
        path = f"/{repository}/blobs/" if repository else "/"
        return [asked for asked in self.writes if (asked.method, asked.status) == (method, 201) and path in asked.path]

    @property
    def tagged(self) -> list[str]:
        """What manifests were stored under, in order: ``repository:tag``, or ``repository@digest``."""
        puts = [a.path for a in self.writes if a.method == "PUT" and "/manifests/" in a.path and a.status == 201]
        named = [path.removeprefix("/v2/").partition("/manifests/") for path in puts]
        return [f"{name}{'@' if ':' in tag else ':'}{tag}" for name, _, tag in named]


def _parameter(path: str, name: str) -> str:
    found = re.search(rf"[?&]{name}=([^&]+)", path)
    assert found, path
    return found[1].replace("%3A", ":")


def manifest_of(reference: str) -> dict[str, Any]:
    """A manifest as `oras` fetches it."""
    value: dict[str, Any] = json.loads(output("oras", "manifest", "fetch", "--plain-http", reference))
    return value


def digest_of(reference: str) -> str:
    """What a tag stands for, as `oras` resolves it."""
    return output("oras", "resolve", "--plain-http", reference)


def tags_of(repository: str) -> list[str]:
    """The tags of a repository; none where there is no repository."""
    done = subprocess.run(
        ["oras", "repo", "tags", "--plain-http", repository], check=False, capture_output=True, text=True
    )
    return done.stdout.split() if done.returncode == 0 else []


def output(*command: str) -> str:
    """What a command prints, stripped."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()
