"""AWS Lambda's runtime API, as its documentation describes it: invocations are handed out, one at a time.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_NEXT = "/2018-06-01/runtime/invocation/next"


class LambdaApi(ThreadingHTTPServer):
    """On a port of loopback. `invoke` does what a caller of the function does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.told: queue.Queue[tuple[str, str, bytes]] = queue.Queue()
        self.asked_at: list[float] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def invoke(self, event: object) -> tuple[str, Any]:
        """`response` or `error`, and what it holds."""
        number = f"invocation-{time.monotonic_ns()}"
        self.events.put((number, json.dumps(event).encode()))
        answered, kind, body = self.told.get(timeout=60)
        assert answered == number
        return kind, json.loads(body)

    def fetch(self, path: str, body: str = "", method: str = "POST", **event: Any) -> Any:
        """What a function URL makes of a request: the event's answer."""
        asked: dict[str, Any] = {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": path,
            "rawQueryString": "",
            "headers": {"content-type": "application/json", "host": "abc.lambda-url.eu-west-1.on.aws"},
            "requestContext": {"stage": "$default", "http": {"method": method, "path": path}},
            "body": body,
            "isBase64Encoded": False,
        }
        kind, answer = self.invoke({**asked, **event})
        assert kind == "response", answer
        return answer


class _Handler(BaseHTTPRequestHandler):
    server: LambdaApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert self.path == _NEXT
        self.server.asked_at.append(time.monotonic())
        number, event = self.server.events.get()
        deadline_ms = round((time.time() + 30) * 1000)
        self._send(
            200, event, {"Lambda-Runtime-Aws-Request-Id": number, "Lambda-Runtime-Deadline-Ms": str(deadline_ms)}
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number, kind = self.path.removeprefix("/2018-06-01/runtime/invocation/").split("/")
        self._send(202, b'{"status": "OK"}', {})
        self.server.told.put((number, kind, body))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def lambda_api() -> Iterator[LambdaApi]:
    """Runs for as long as the context."""
    with LambdaApi() as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        yield api
        api.shutdown()
