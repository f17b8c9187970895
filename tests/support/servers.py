"""Servers as real processes: started, asked, and told to stop."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ECHO = "def load(model_dir, options): return None\ndef predict(model, inputs): return inputs\n"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(port: int, path: str, body: object = None, timeout_seconds: float = 30) -> Reply:
    """One request on a connection of its own. Raises OSError and HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("GET" if data is None else "POST", path, data)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read())
    finally:
        connection.close()


def rows(values: list[list[float]], name: str = "input") -> dict[str, Any]:
    """A request with one 2-D tensor."""
    return {"inputs": [{"name": name, "datatype": "FP64", "shape": [len(values), len(values[0])], "data": values}]}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def server_folder(
    folder: Path, handler: str | None = ECHO, options: Mapping[str, Any] | None = None, **facts: Any
) -> Path:
    """What an image has in /opt/mlimg: the facts of the build and the user's handler."""
    (folder / "code").mkdir(parents=True, exist_ok=True)
    if handler is not None:
        (folder / "code" / "handler.py").write_text(handler)
    written = {"template": "python", "templateVersion": "1", "frameworks": [], "formats": [], **facts}
    (folder / "server.json").write_text(json.dumps({**written, "options": dict(options or {})}))
    return folder


@dataclass
class ServerProcess:
    """A running `python -m mlimg.runtime …`."""

    process: subprocess.Popen[str]
    port: int

    def ready(self) -> int | None:
        """The status of the readiness route; None while nothing answers."""
        try:
            return ask(self.port, "/v2/health/ready", timeout_seconds=5).status
        except (OSError, http.client.HTTPException):
            return None

    def wait_until(self, status: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.ready() != status:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, f"never {status}"
            time.sleep(0.02)

    def signal(self, number: int = signal.SIGTERM) -> float:
        """Send a signal; the time when it was sent."""
        self.process.send_signal(number)
        return time.monotonic()

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Exit status and what stderr still had."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors


@contextmanager
def running(environ: Mapping[str, str], *arguments: str, tracer: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """Start the runtime with nothing but `environ` in its environment; it is gone afterwards.

    `tracer` is put before its command.
    """
    port = free_port()
    process = subprocess.Popen(
        [*tracer, sys.executable, "-m", "mlimg.runtime", *(arguments or ("serve",))],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PORT": str(port), "HOST": "127.0.0.1", **environ},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield ServerProcess(process, port)
    finally:
        process.kill()
        process.communicate()
