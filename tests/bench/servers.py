"""The servers that a benchmark asks, side by side: ours, MLServer's and the KServe SDK's, each in packages of its own.

All serve one scikit-learn model, trained here, with the same version of scikit-learn.
"""

import atexit
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile, mkdtemp

from project import ROOT

SKLEARN = "scikit-learn==1.7.2"
UV = [str(ROOT / ".venv" / "bin" / "uv"), "--quiet"]
OURS = ["httptools", "msgspec", "prometheus-client", "starlette", "uvicorn", "urllib3", "numpy", "skops", "joblib"]
TRAIN = """\
import sys

import joblib
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

joblib.dump(LogisticRegression(max_iter=3000).fit(*load_digits(return_X_y=True)), sys.argv[1])
"""
BY_HAND = """\
import sys

import joblib

import sklearn.linear_model

joblib.load(sys.argv[1])
"""
KSERVE = """\
import sys

import joblib
from kserve import Model, ModelServer
from kserve.utils.utils import get_predict_input, get_predict_response


class Digits(Model):
    def load(self):
        self.model = joblib.load(sys.argv[1])
        self.ready = True

    def predict(self, payload, headers=None):
        return get_predict_response(payload, self.model.predict(get_predict_input(payload)), self.name)


if __name__ == "__main__":
    digits = Digits("digits")
    digits.load()
    ModelServer(http_port=int(sys.argv[2]), enable_grpc=False).start([digits])
"""


@dataclass(frozen=True)
class Contender:
    """A server of the model, as its makers say it is started."""

    name: str
    port: int
    model: str  # its name in URLs
    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it predicts."""
        return f"http://127.0.0.1:{self.port}/v2/models/{self.model}/infer"


@dataclass(frozen=True)
class Started:
    """A server that is ready."""

    contender: Contender
    process: subprocess.Popen[bytes]
    seconds: float  # from its start to its first 200

    def resident_mib(self) -> float:
        """The memory that its processes have for themselves, and their part of what they share."""
        return self._mib("Pss:")

    def anonymous_mib(self) -> float:
        """The same without pages of files, of which less is counted while other processes run the same interpreter."""
        return self._mib("Pss_Anon:")

    def _mib(self, what: str) -> float:
        return sum(_kib(process, what) for process in _family(self.process.pid)) / 1024


def train(folder: Path) -> Path:
    """A logistic regression of the digits."""
    script, model = folder / "train.py", folder / "model" / "model.joblib"
    model.parent.mkdir()
    script.write_text(TRAIN)
    subprocess.run([*python(SKLEARN, "joblib"), script, model], check=True)
    return model


@cache
def python(*packages: str) -> list[str]:
    """The command of a Python that has `packages`, in an environment that lasts as long as this process."""
    folder = Path(mkdtemp(prefix="mlimg-bench-venv."))
    atexit.register(rmtree, folder, ignore_errors=True)
    subprocess.run([*UV, "venv", "--python", "3.11", folder], check=True)
    # As images have them: compiled, and files of their own, whose pages no other process shares.
    how = ["--compile-bytecode", "--link-mode", "copy"]
    subprocess.run([*UV, "pip", "install", *how, "--python", folder / "bin" / "python", *packages], check=True)
    return [str(folder / "bin" / "python")]


def ours(model: Path, folder: Path, port: int, name: str = "mlimg", **environ: str) -> Contender:
    """This checkout's runtime and the handler of its template, as an image with `dataframes: false` has them."""
    server = folder / "server"
    if not server.exists():
        server.mkdir()
        (server / "handler.py").write_bytes((ROOT / "templates" / "sklearn" / "handler.py").read_bytes())
        facts = {"template": "sklearn", "templateVersion": "1", "frameworks": ["sklearn"], "formats": ["joblib"]}
        (server / "server.json").write_text(json.dumps({**facts, "options": {"method": "predict"}}))
    fixed = {
        "PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "MLIMG_SERVER_DIR": str(server),
        "MLIMG_MODEL_DIR": str(model.parent),
    }
    command = [*python(SKLEARN, *OURS), "-m", "mlimg.runtime", "serve"]
    return Contender(name, port, "model", command, {**fixed, **environ})


def mlserver(model: Path, folder: Path, port: int, name: str = "MLServer", **batching: float) -> Contender:
    """MLServer, in one process: with workers, each request passes a queue to another process, and its rate is lower.

    `batching` are its settings of adaptive batching, `max_batch_size` and `max_batch_time` in seconds.
    """
    home = folder / name
    home.mkdir()
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    (home / "settings.json").write_text(json.dumps({**ports, "parallel_workers": 0}))
    parameters = {"uri": str(model), "version": "1"}
    settings = {"name": "digits", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": parameters}
    settings |= batching
    (home / "model-settings.json").write_text(json.dumps(settings))
    interpreter = python(SKLEARN, "mlserver==1.7.1", "mlserver-sklearn==1.7.1")
    start = "import sys; from mlserver.cli import main; sys.argv = ['mlserver', 'start', sys.argv[1]]; main()"
    return Contender(name, port, "digits", [*interpreter, "-c", start, str(home)])


def kserve(model: Path, folder: Path, port: int) -> Contender:
    """The KServe SDK, as its pages show a model of one's own."""
    script = folder / "kserve_server.py"
    script.write_text(KSERVE)
    interpreter = python(SKLEARN, "kserve==0.21", "joblib")
    return Contender("KServe", port, "digits", [*interpreter, str(script), str(model), str(port)])


@contextmanager
def started(contender: Contender) -> Iterator[Started]:
    """Start a server and wait until it is ready; it is gone afterwards."""
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **contender.environ}
    begun = time.monotonic()
    with TemporaryFile() as log:
        process = subprocess.Popen(contender.command, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            while not _is_ready(contender):
                if process.poll() is not None or time.monotonic() - begun > 120:
                    log.seek(0)
                    said = log.read()[-2000:].decode(errors="replace")
                    raise SystemExit(f"{contender.name} is not ready: exit status {process.poll()}\n{said}")
                time.sleep(0.005)
            yield Started(contender, process, time.monotonic() - begun)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def by_hand(model: Path) -> list[str]:
    """The command that imports the framework and loads the model, and nothing else."""
    return [*python(SKLEARN, "joblib"), "-c", BY_HAND, str(model)]


def _is_ready(contender: Contender) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", contender.port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [pid, *(member for child in found for member in _family(child))]


def _kib(pid: int, what: str) -> int:
    """A line of https://www.kernel.org/doc/html/latest/filesystems/proc.html, `smaps_rollup`."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(what))
