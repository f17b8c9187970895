"""AWS Lambda: invocations are asked for at its runtime API and answered through the server's own port.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
"""

import base64
import http.client
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from mlimg.runtime.variables import READY_PATH

log = logging.getLogger(__name__)
RUNTIME_API: Final = "AWS_LAMBDA_RUNTIME_API"
# The only folder that can be written there.
FOLDERS: Final = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), "/tmp")  # noqa: S108
_API: Final = "/2018-06-01/runtime/invocation/"
# Lambda ends a start that takes 10 s and begins it anew at the first invocation. Who asks for an invocation sooner has
# started, and may go on starting in the time of that invocation. A start in advance has minutes.
_START_SECONDS: Final = 8.0
_POLL_SECONDS: Final = 0.02
_HOP_BY_HOP: Final = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})
_TEXT: Final = ("application/json", "text/")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


def start(environ: Mapping[str, str], port: int) -> None:
    """Answer invocations beside the server that listens on `port`; when that cannot go on, the server is ended."""
    on_demand = environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand") == "on-demand"
    loop = Loop(environ[RUNTIME_API], f"127.0.0.1:{port}", _START_SECONDS if on_demand else float("inf"))
    threading.Thread(target=loop.run, name="lambda", daemon=True).start()


@dataclass(slots=True)
class Loop:
    """Takes invocations from `api` to `server`, at first when that is ready or `patience_seconds` are over."""

    api: str
    server: str
    patience_seconds: float
    ready: bool = False

    def run(self) -> None:
        """Go on until the runtime API is gone; then end the process."""
        try:
            self._wait(self.patience_seconds)
            while True:
                self._take_one()
        except Exception as error:  # the last border of this thread
            log.error("Lambda's runtime API does not answer as it should", exc_info=error)
            os.kill(os.getpid(), signal.SIGTERM)

    def _wait(self, seconds: float) -> None:
        """Wait until the server is ready, but so long at most."""
        end = time.monotonic() + seconds
        while not self.ready and time.monotonic() < end:
            self.ready = _request(self.server, "GET", READY_PATH).status == 200
            time.sleep(0 if self.ready else _POLL_SECONDS)

    def _take_one(self) -> None:
        """Answer the next invocation."""
        event = _request(self.api, "GET", f"{_API}next")
        if event.status != 200:
            raise ConnectionError(f"the next invocation: status {event.status}")
        number = event.headers["lambda-runtime-aws-request-id"]
        self._wait(int(event.headers["lambda-runtime-deadline-ms"]) / 1000 - time.time())
        try:
            body, what = self._answer(event.body, number), "response"
        except Exception as error:  # this invocation's, as far as anybody knows
            log.error("invocation %s failed", number, exc_info=error)
            told = {"errorType": type(error).__name__, "errorMessage": str(error)}
            body, what = json.dumps(told).encode(), "error"
        taken = _request(self.api, "POST", f"{_API}{number}/{what}", body)
        if taken.status >= 500:  # by contract: the runtime is to exit
            raise ConnectionError(f"the {what} of an invocation: status {taken.status}")
        if taken.status >= 400:
            log.error("invocation %s: its %s of %d bytes was refused: %d", number, what, len(body), taken.status)

    def _answer(self, event: bytes, number: str) -> bytes:
        """What Lambda is to return. Raises ValueError for a direct invocation that the server refuses."""
        asked = json.loads(event)
        context = asked.get("requestContext") if isinstance(asked, dict) else None
        if isinstance(context, dict) and "http" in context:
            return json.dumps(self._answer_http(asked, context, number)).encode()
        answer = _request(self.server, "POST", "/invocations", event, {"x-request-id": number})
        if answer.status != 200:
            raise ValueError(answer.body.decode())
        return answer.body

    def _answer_http(self, asked: Mapping[str, Any], context: Mapping[str, Any], number: str) -> dict[str, Any]:
        """The answer to an event of a function URL or of an HTTP API, format 2.0."""
        stage, path = f"/{context['stage']}", str(asked["rawPath"])
        if path.startswith(f"{stage}/"):  # as it does for any stage but `$default`
            path = path.removeprefix(stage)
        query = asked.get("rawQueryString")
        body = asked.get("body") or ""
        headers = {name: value for name, value in asked["headers"].items() if name.lower() not in _HOP_BY_HOP}
        answer = _request(
            self.server,
            context["http"]["method"],
            quote(path, safe="/%:@!$&'()*+,;=~") + (f"?{query}" if query else ""),
            base64.b64decode(body) if asked.get("isBase64Encoded") else body.encode(),
            {"x-request-id": number, **headers},
        )
        told = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
        plain = answer.headers.get("content-type", "").startswith(_TEXT) and "content-encoding" not in answer.headers
        text = answer.body.decode() if plain else base64.b64encode(answer.body).decode()
        return {"statusCode": answer.status, "headers": told, "body": text, "isBase64Encoded": not plain}


def _request(
    host: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> _Answer:
    """One request, without a time-out: an environment may be frozen meanwhile. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(host)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return _Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()
