"""Behind the port: requests are counted, get ids, and what they raise becomes a status of gRPC.

https://grpc.io/docs/guides/status-codes/
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from starlette.exceptions import HTTPException

from mlimg.runtime.errors import printable
from mlimg.runtime.server import tracing
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.grpc_v2.messages import MESSAGES, parsed
from mlimg.runtime.server.grpc_v2.servicer import Asked, Method, Servicer
from mlimg.runtime.server.http import TOO_SLOW, leaving
from mlimg.runtime.server.logs import Requests
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.tracing import RequestContext

log = logging.getLogger(__name__)
_PROTOCOL: Final = "v2-grpc"
_GONE: Final = 499  # the client was, and the handler cancelled
_AT_ONCE_SECONDS: Final = 0.1  # a request that is there by then takes none of the room
# By the status that the same has over REST, which metrics and the log of requests show.
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    499: grpc.StatusCode.CANCELLED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md: clients with a retry policy heed it.
_PUSHBACK: Final = (("grpc-retry-pushback-ms", "1000"),)

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]
Work = Callable[[Asked], Awaitable[Any]]


class Door:
    """Makes handlers of a servicer's methods."""

    def __init__(self, service: Service, servicer: Servicer) -> None:
        self._service = service
        self._servicer = servicer
        self._requests = Requests(all_of_them=service.settings.log_requests)
        self.under_way = 0

    # Each request is read here, as if it were a stream: gRPC itself would read whatever comes, and as long as it comes.

    def handler(self, path: str, method: Method) -> Handler:
        """What gRPC calls for a method."""
        response = MESSAGES[method.response]

        async def handle(_requests: Any, context: Context) -> Any:
            async def work(asked: Asked) -> bytes:
                request = parsed(method.request, await self._read(context))
                answer: bytes = response(**await method.answer(asked, request)).SerializeToString()
                return answer

            return await self._pass(path, context, work, while_draining=method.while_draining)

        return handle

    def infer(self, path: str) -> Handler:
        """What gRPC calls for `ModelInfer`: who is turned away is not read from."""

        async def handle(_requests: Any, context: Context) -> Any:
            async def work(asked: Asked) -> bytes:
                self._service.check_free()
                return await self._servicer.infer(asked, await self._read(context))

            return await self._pass(path, context, work)

        return handle

    async def _read(self, context: Context) -> bytes:
        """A request's message.

        How much of it has arrived gRPC does not tell. So one that is not there at once takes as much of the room as it
        may become, and is refused where that is not left. Raises HTTPException.
        """
        room, limit_bytes = self._service.room, self._service.settings.body_limit_bytes
        full: HTTPException | None = None
        taken = False

        def take() -> None:
            nonlocal full, taken
            try:
                room.take(limit_bytes)
                taken = True
            except HTTPException as error:
                full = error
                time_out.reschedule(0)

        timer = asyncio.get_running_loop().call_later(_AT_ONCE_SECONDS, take)
        try:
            async with asyncio.timeout(self._service.settings.request_timeout_seconds) as time_out:
                body = await context.read()
        except TimeoutError:
            raise full or HTTPException(408, TOO_SLOW) from None
        finally:
            timer.cancel()
            if taken:
                room.give_back(limit_bytes)
        if not isinstance(body, bytes):  # the client has nothing to say, or said too much: gRPC has told it
            raise HTTPException(400, "there is no request")
        return body

    async def _pass(self, path: str, context: Context, work: Work, *, while_draining: bool = False) -> Any:
        asked = Asked(_context(context))
        tracing.enter(asked.context)
        start, status, refused = time.monotonic(), _GONE, None
        trailing = [("x-request-id", asked.context.request_id)]
        if asked.context.trace:
            trailing += asked.context.trace.headers().items()
        self.under_way += 1
        context.add_done_callback(self._leave)  # type: ignore[arg-type]  # in the stubs nothing is a callback
        try:
            if self._service.state.draining and not while_draining:
                raise leaving()
            answer, status = await work(asked), 200
        except InputError as error:
            refused = HTTPException(400, str(error))
        except HTTPException as error:
            refused = error
        except Exception as error:  # what nobody foresaw: the log is told, the client is not
            log.exception("request %s: a bug in the server", asked.context.request_id, exc_info=error)
            refused = HTTPException(500, "internal error")
        finally:
            status = refused.status_code if refused else status
            seconds = time.monotonic() - start
            self._service.metrics.answered(_PROTOCOL if asked.model else "other", asked.model, status, seconds)
            self._requests.answered("GRPC", path, status, seconds, asked.model)
        if refused is None:
            context.set_trailing_metadata(tuple(trailing))
            return answer
        if refused.headers:
            trailing += _PUSHBACK
        text = _as_message(refused.detail)
        if refused.status_code >= 500:
            text += f" (request {asked.context.request_id})"
        return await context.abort(_CODES.get(refused.status_code, grpc.StatusCode.INTERNAL), text, tuple(trailing))

    def _leave(self, _context: Context) -> None:
        """The answer is out: the client has taken it, but for what lies in buffers of the connection."""
        self.under_way -= 1


def _as_message(text: str) -> str:
    """`text` as a status can have it: gRPC takes no other than Unicode, and clients 8 KiB of it when it is encoded."""
    text = printable(text)
    return text[: 2000 if text.isascii() else 500]


def _context(context: Context) -> RequestContext:
    given = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return RequestContext.begin(
        given.get("x-request-id", ""), given.get("traceparent", ""), given.get("tracestate", "")
    )
