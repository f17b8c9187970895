"""A client of servers, against one that answers as it is told."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mlimg.client import Client
from mlimg.runtime.errors import RemoteError, RemoteTemporaryError, UsageError


class Server(HTTPServer):
    status = 200
    body = b"{}"
    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_inputs_come_from_the_metadata(server: Server) -> None:
    server.body = json.dumps({"name": "d", "inputs": [{"name": "x"}, "junk"]}).encode()
    assert Client(server.url).inputs("a/b") == [{"name": "x"}]
    assert server.asked == ["/v2/models/a%2Fb"]


def test_a_server_that_is_starting_says_so(server: Server) -> None:
    server.status = 503
    assert "503" in Client(server.url).not_ready()
    server.status = 200
    assert Client(server.url).not_ready() == ""


def test_a_refusal_is_told_with_its_escapes(server: Server) -> None:
    """I11."""
    server.status, server.body = 400, json.dumps({"error": "bad \x1b[2J\u202e shape"}).encode()
    with pytest.raises(RemoteError, match="400: bad ") as caught:
        Client(server.url).infer("d", {})
    assert "\x1b" not in caught.value.message
    assert "\u202e" not in caught.value.message


def test_a_busy_server_may_be_asked_again(server: Server) -> None:
    server.status = 503
    with pytest.raises(RemoteTemporaryError):
        Client(server.url).infer("d", {})


@pytest.mark.parametrize("body", [b"[1]", b"<html>", b""])
def test_another_kind_of_server_is_an_error(server: Server, body: bytes) -> None:
    server.body = body
    with pytest.raises(RemoteError, match="not a JSON object"):
        Client(server.url).infer("d", {})


def test_no_server_is_temporary_and_names_the_command_that_starts_one() -> None:
    client = Client("http://127.0.0.1:9")
    assert client.not_ready()
    with pytest.raises(RemoteTemporaryError, match="no server answers") as caught:
        client.inputs("d")
    assert "mlimg run" in caught.value.hint


def test_only_http_is_asked() -> None:
    with pytest.raises(UsageError):
        Client("file:///etc/passwd")


def test_a_local_server_is_reached_past_any_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert Client(server.url, local=True).not_ready() == ""
    assert Client(server.url).not_ready() != ""
