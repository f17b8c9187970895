"""The ASGI application: every protocol's routes behind one door that counts, names and, at the end, refuses."""

import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlimg.runtime.server.service import JSON, RETRY
from mlimg.runtime.server.state import State

log = logging.getLogger(__name__)
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")


class Door:
    """Counts the requests under way and gives each an id; once the server drains, it turns new ones away."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        scope["request_id"] = _request_id(scope)
        start, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["x-request-id"] = scope["request_id"]
                if self._state.draining:
                    headers["connection"] = "close"
            await send(message)

        draining = self._state.draining and not scope["path"].startswith("/v2/health/")
        self.under_way += 1
        try:
            await (_leaving if draining else self._app)(scope, receive, answer)
        finally:
            self.under_way -= 1
            seconds = time.monotonic() - start
            log.debug("%s %s %d %.4f s", scope["method"], scope["path"], status, seconds)


def make_app(routes: Sequence[BaseRoute], state: State) -> Door:
    """The whole application; every answer to what goes wrong is JSON with an `error`."""
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )
    app.router.redirect_slashes = False
    return Door(app, state)


async def _leaving(scope: Scope, receive: Receive, send: Send) -> None:
    await JSON({"error": "the server is shutting down"}, 503, RETRY)(scope, receive, send)


async def _refuse(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    body = {"error": error.detail}
    if error.status_code >= 500:
        body["request_id"] = request.scope["request_id"]
    return JSON(body, error.status_code, error.headers)


async def _fail(request: Request, _error: Exception) -> Response:
    """Answer what nobody foresaw. The server logs the exception; the client learns nothing of it."""
    return JSON({"error": "internal error", "request_id": request.scope["request_id"]}, 500)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
