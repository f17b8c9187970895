"""An engine that is none: a server on a socket of its own that answers what a test tells it."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

VERSION = {"Version": "26.1.5", "ApiVersion": "1.45", "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64"}
INFO = {"ID": "an-engine", "DriverStatus": [["Backing Filesystem", "extfs"]], "DockerRootDir": "/var/lib/docker"}


@dataclass
class StubEngine:
    """What is answered to ``METHOD /path`` (without the version), and what was asked."""

    socket: Path
    answers: dict[str, Any] = field(default_factory=lambda: {"GET /version": VERSION, "GET /info": INFO})
    asked: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return {"DOCKER_HOST": f"unix://{self.socket}", "HOME": str(self.socket.parent)}


Stream = Callable[[Any], None]
"""An answer that a test writes itself, to the connection's file."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        stub: StubEngine = self.server.stub  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        if path.startswith("/v1."):
            path = "/" + path.split("/", 2)[2]
        stub.asked.append(f"{self.command} {self.path}")
        answer = stub.answers.get(f"{self.command} {path}")
        if callable(answer):
            self.close_connection = True
            self.send_response(200)
            self.end_headers()
            answer(self.wfile)
            return
        status, body = (200, answer) if answer is not None else (404, {"message": f"No such image: {path}"})
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_DELETE = do_GET  # noqa: N815 (the base class's names)

    def address_string(self) -> str:
        return "a unix socket"

    def log_message(self, *_: Any) -> None:
        pass


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up in the middle is part of the tests."""


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[StubEngine]:
    stub = StubEngine(tmp_path / "docker.sock")
    with _Server(str(stub.socket), _Handler) as server:
        server.stub = stub  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield stub
        server.shutdown()
        thread.join()
