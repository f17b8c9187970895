"""The ASGI application: every protocol's routes behind one door that counts, names and, at the end, refuses."""

import logging
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlimg.runtime.server import tracing
from mlimg.runtime.server.http import JSON, error_body, header, leaving
from mlimg.runtime.server.logs import Requests
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.tracing import RequestContext

log = logging.getLogger(__name__)
_PATHS: Final = 128  # that are remembered: each may be as long as a head
_NOT_SERVED: Final = ("other", "")  # protocol and model of what no model answered


class Door:
    """Counts the requests under way, gives each an id, and answers what its route raised.

    Every answer to what goes wrong is JSON with an `error`. Once the server drains, new requests are turned away.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._state = service.state
        self._metrics = service.metrics
        self._requests = Requests(all_of_them=service.settings.log_requests)
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        context = scope["context"] = _context(scope)
        request_id = scope["request_id"] = context.request_id
        scope["app"] = self  # so that a route raises what it refuses
        tracing.enter(context)
        start, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                headers.append((b"x-request-id", request_id.encode()))
                if context.trace:
                    headers += [(name.encode(), text.encode()) for name, text in context.trace.headers().items()]
                if self._state.draining:
                    headers.append((b"connection", b"close"))
            await send(message)

        self.under_way += 1
        try:
            if self._state.draining and not scope["path"].startswith("/v2/health/"):
                raise leaving()
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
            seconds = time.monotonic() - start
            protocol, model = scope.get("served", _NOT_SERVED)
            self._metrics.answered(protocol, model, status, seconds)
            self._requests.answered(scope["method"], scope["path"], status, seconds, model)


def make_app(routes: Sequence[BaseRoute], service: Service) -> Door:
    """The whole application."""
    return Door(_Routes(routes), service)


class _Routes:
    """Passes requests on to the first route of their path. It is remembered: each is a pattern to be tried."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes
        self._found = lru_cache(_PATHS)(self._find)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._found(scope["method"], scope["path"])
        if found is None:
            raise HTTPException(404)
        route, of_the_path = found
        scope.update(of_the_path)
        await route.handle(scope, receive, send)

    def _find(self, method: str, path: str) -> tuple[BaseRoute, Scope] | None:
        other_methods = None
        for route in self._routes:
            match, of_the_path = route.matches({"type": "http", "method": method, "path": path})
            if match is Match.FULL:
                return route, of_the_path
            if match is Match.PARTIAL:  # which says by itself that it is the wrong method
                other_methods = other_methods or (route, of_the_path)
        return other_methods


def _context(scope: Scope) -> RequestContext:
    return RequestContext.begin(
        header(scope, b"x-request-id"), header(scope, b"traceparent"), header(scope, b"tracestate")
    )
