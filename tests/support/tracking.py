"""A real MLflow tracking server with its model registry, and models registered there by MLflow's own client."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.engines import CACHE
from tests.support.servers import free_port

PYTHON: Final = CACHE / "mlflow" / "bin" / "python"
_START_SECONDS: Final = 120
# Registers a folder as three versions of one model, as people come by them: a run's artifacts by two names, and a
# model that was logged on its own. The second is also `champion`.
_REGISTER: Final = """
import sys
from mlflow import MlflowClient

client = MlflowClient(sys.argv[1])
name, folder = sys.argv[2], sys.argv[3]
experiment = client.create_experiment(name)
run = client.create_run(experiment)
client.log_artifacts(run.info.run_id, folder, "model")
client.create_registered_model(name)
client.create_model_version(name, f"runs:/{run.info.run_id}/model", run.info.run_id)
version = client.create_model_version(name, run.info.artifact_uri + "/model", run.info.run_id)
client.set_registered_model_alias(name, "champion", version.version)
logged = client.create_logged_model(experiment, name=name)
client.log_model_artifacts(logged.model_id, folder)
client.finalize_logged_model(logged.model_id, "READY")
client.create_model_version(name, f"models:/{logged.model_id}", model_id=logged.model_id)
for source in sys.argv[4:]:
    client.create_model_version(name, source, run.info.run_id)
"""


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """Run a server that keeps everything below `folder`; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [PYTHON, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=_environ(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(address, server, folder / "log")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # the group of its own session: the server and its workers
        server.wait()


def register(address: str, name: str, folder: Path, *sources: str) -> None:
    """Register a folder as versions 1 to 3 of a model, and whatever `sources` name as the next."""
    command = [PYTHON, "-c", _REGISTER, address, name, folder, *sources]
    done = subprocess.run(command, env=_environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _environ() -> dict[str, str]:
    return os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
