"""The ASGI application: every protocol's routes behind one door that counts, names and, at the end, refuses."""

import logging
import os
import re
import time
from collections.abc import Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlimg.runtime.server.http import JSON, RETRY, error_body, header
from mlimg.runtime.server.state import State

log = logging.getLogger(__name__)
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")


class Door:
    """Counts the requests under way, gives each an id, and answers what its route raised.

    Every answer to what goes wrong is JSON with an `error`. Once the server drains, new requests are turned away.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        request_id = scope["request_id"] = _request_id(scope)
        scope["app"] = self  # so that a route raises what it refuses
        start, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                headers.append((b"x-request-id", request_id.encode()))
                if self._state.draining:
                    headers.append((b"connection", b"close"))
            await send(message)

        self.under_way += 1
        try:
            if self._state.draining and not scope["path"].startswith("/v2/health/"):
                raise HTTPException(503, "the server is shutting down", RETRY)
            await self._app(scope, receive, answer)
        except HTTPException as error:
            if status == 0:
                reply = JSON(error_body(error, request_id), error.status_code, error.headers)
                await reply(scope, receive, answer)
        except Exception as error:  # what nobody foresaw: the log is told, the client is not
            log.exception("request %s: a bug in the server", request_id, exc_info=error)
            if status == 0:
                await JSON({"error": "internal error", "request_id": request_id}, 500)(scope, receive, answer)
        finally:
            self.under_way -= 1
            if log.isEnabledFor(logging.DEBUG):
                seconds = time.monotonic() - start
                log.debug("%s %s %d %.4f s", scope["method"], scope["path"], status, seconds)


def make_app(routes: Sequence[BaseRoute], state: State) -> Door:
    """The whole application."""
    return Door(Router(routes, redirect_slashes=False, default=_nothing), state)


async def _nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise HTTPException(404)


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
