"""A request and its answer as the application sees them: uvicorn's, but for how an answer is written."""

import asyncio
import logging
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

_SMALL_BYTES: Final = 64 * 1024  # of a body that is copied behind its head: cheaper than another call into the kernel
_log: Final = logging.getLogger("uvicorn.error")


class Cycle(RequestResponseCycle):
    """What the application reads a request from and answers it to; it says how long an answer is in its headers.

    `close` is what is done after an answer that is the last one on its connection.
    """

    def __init__(self, connection: HttpToolsProtocol, *, keep_alive: bool) -> None:
        super().__init__(
            scope=connection.scope,
            transport=connection.transport,
            flow=connection.flow,
            logger=_log,
            access_logger=_log,
            access_log=False,
            default_headers=connection.server_state.default_headers,  # the date
            message_event=asyncio.Event(),
            expect_100_continue=connection.expect_100_continue,
            keep_alive=keep_alive,
            on_response=connection.on_response_complete,
        )
        self.close = connection.transport.close
        self._head = b""

    async def send(self, message: Any) -> None:
        """Take a part of the answer: its head waits for its body, so that both are one packet."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._written(message["status"], [*self.default_headers, *message.get("headers", ())])
        elif message["type"] == "http.response.body":
            body = b"" if self.scope["method"] == "HEAD" else message.get("body", b"")
            head, self._head = self._head, b""
            if len(body) < _SMALL_BYTES:
                self.transport.write(head + body)
            else:
                self.transport.write(head)
                self.transport.write(body)
            if not message.get("more_body", False):
                self._complete()

    def _written(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        if (b"connection", b"close") in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append((b"connection", b"close"))
        head = STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % header for header in headers]) + b"\r\n"
        if head.count(b"\n") != len(headers) + 2:
            raise RuntimeError("a header has more than one line")
        return head

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.close()
        self.on_response()
