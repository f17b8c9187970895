"""A client's connection: uvicorn's over httptools, one request at a time, and no more than the limits allow.

llhttp, the parser, refuses most of what is ambiguous (RFC 9112); the rest is refused here. Whatever is wrong, a request
gets one answer at most, and what follows it on that connection is not read. Timers are those of the event loop, which
are monotonic.
"""

import asyncio
import json
from enum import Enum, auto
from typing import Any, ClassVar, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from mlimg.runtime.server.cycle import Cycle
from mlimg.runtime.server.http import REFUSED, TOO_SLOW
from mlimg.runtime.server.settings import Limits

_SURPLUS_BYTES: Final = 2**20  # of a body that was answered before its end: read, so that the connection can go on
_LINGER_BYTES: Final = 8 * 2**20  # thrown away after the last answer: closing on what was not read resets, and the
_LINGER_SECONDS: Final = 5.0  # client may never see the answer
_RATE_SECONDS: Final = 5.0  # a body's rate is taken over so long
_CHUNK_LINE_BYTES: Final = 16  # of a chunk without extensions, at most
_TOO_LARGE: Final = "the headers are too large"
_CROWD: Final = 16  # connections above the limit that are told so; the next are cut off


class _Due(Enum):
    """What of the request that is being read has not arrived."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()


class _Refused(Exception):  # noqa: N818 (it never leaves the parser's callbacks)
    def __init__(self, status: int, why: str) -> None:
        super().__init__(status, why)
        self.status, self.why = status, why


class Connection(HttpToolsProtocol):
    """What uvicorn makes for each connection. `limits` are those of the class that `limited` makes."""

    limits: ClassVar[Limits] = Limits()
    cycle: Cycle  # the last one; None before the first

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._due = self._timed = _Due.NOTHING
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None  # None: a request is under way
        self._body_due = 0.0  # when the request's body has to be there
        self._deaf = False  # what comes is thrown away
        self._discarded_bytes = 0
        self._upgrade = False
        self._held = False  # the answer would be the last, as the request has not arrived
        self._lasting = True  # the connection goes on after the answer
        self._length: int | None = 0  # None: chunked
        self._segment_bytes = self._first_bytes = 0
        self._head_bytes = self._body_bytes = self._read_bytes = self._chunks = 0

    # From the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client on, or tell it that there are too many."""
        super().connection_made(transport)
        crowd = len(self.connections) - self.limits.connections
        if crowd > _CROWD:
            transport.abort()
        elif crowd > 0:
            self._refuse(503, "too many connections")
        else:
            self._be_idle()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._deaf:
            self._discard(len(data))
            return
        self._idle_since = None
        self._segment_bytes = len(data)
        self._read_bytes += len(data)
        if self._due is _Due.HEAD:
            self._head_bytes += len(data)
        try:
            self._feed(data)
            self._check_size()
        except _Refused as refused:
            self._refuse(refused.status, refused.why)
            return
        if self._due is not _Due.NOTHING or self._timed is not _Due.NOTHING or self._held:
            self._watch()
        if self._due is _Due.NOTHING and (self.cycle is None or self.cycle.response_complete):
            self._be_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_timers()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it is given."""
        super().pause_writing()
        self._expect_taken(self.limits.keep_alive_seconds)

    def resume_writing(self) -> None:
        """It took most of it."""
        super().resume_writing()
        if self._deaf or self.transport.is_closing():  # the rest is to be taken, too
            return
        if self._stall is not None:
            self._stall.cancel()
        if self._idle_since is not None:
            self._be_idle()

    # From the parser

    def on_message_begin(self) -> None:
        """Another request."""
        if self.cycle is not None and not self.cycle.response_complete:
            raise _Refused(400, "a request before the answer to the last")
        self._due, self._timed = _Due.HEAD, _Due.NOTHING  # the timer of a body before is not this one's
        self._upgrade = False
        self._first_bytes = self._segment_bytes  # of which some may be another request's
        self._head_bytes = self._body_bytes = self._read_bytes = self._chunks = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Let the application answer; what could be read in two ways is refused."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self._check_head(method, version)
        if self.parser.should_upgrade():  # the parser takes what follows for another protocol: see _feed
            self._upgrade = True
            return
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        self.scope["method"] = method.decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = target.path
        self.scope["query_string"] = target.query or b""
        self._due = _Due.BODY
        self._lasting = version == "1.1" and self.parser.should_keep_alive()
        self.cycle = Cycle(self, keep_alive=self._lasting)
        task = self.loop.create_task(self.cycle.run_asgi(self.app))
        self.tasks.add(task)  # the loop does not keep it
        task.add_done_callback(self.tasks.discard)
        self.headers = []  # what follows the body is nobody's

    def on_chunk_header(self) -> None:
        """Another part of a body."""
        self._chunks += 1
        if self._chunks > self.limits.chunks:
            raise _Refused(413, f"the body has more than {self.limits.chunks} chunks")

    def on_body(self, body: bytes) -> None:
        """Bytes of a body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        if not self._upgrade:
            self._due = _Due.NOTHING
            super().on_message_complete()

    # From uvicorn

    def on_response_complete(self) -> None:
        """Wait for the next request, if there can be one: no other is read before it is answered."""
        self.server_state.total_requests += 1
        if self._deaf:
            return
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._be_idle()
        elif self.transport.get_write_buffer_size():
            self._expect_taken(self.limits.keep_alive_seconds)

    def shutdown(self) -> None:
        """The answer to the request under way is the last."""
        self._lasting = False
        super().shutdown()

    # Ours

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # No other protocol is spoken: the request is read once more, without its wish for one (RFC 9110, 7.8).
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._feed(head + data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _Refused):
                raise error.__context__ from None
            raise _Refused(400, "not HTTP/1.1, or malformed") from None

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() != b"upgrade"]
                lines.append(b"connection: " + b",".join(tokens))
            elif name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _check_head(self, method: bytes, version: str) -> None:
        if version not in ("1.1", "1.0"):
            raise _Refused(400, "not HTTP/1.1")
        hosts = 0
        self._length = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                self._length = int(value)
            elif name == b"transfer-encoding":
                self._length = None
                if version == "1.0" or value.lower() != b"chunked":
                    raise _Refused(400, "a transfer encoding other than chunked")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise _Refused(400, "not one host")
        if method == b"CONNECT":
            raise _Refused(400, "this is no proxy")
        limits = self.limits
        if len(self.headers) > limits.headers:
            raise _Refused(431, f"more than {limits.headers} headers")
        if self._first_bytes + self._head_bytes > limits.header_bytes:  # seldom: then it is worth counting
            size_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size_bytes > limits.header_bytes:
                raise _Refused(431, _TOO_LARGE)

    def _check_size(self) -> None:
        """Bound what the parser keeps to itself: a line that does not end, what stands between chunks."""
        limit = self.limits.header_bytes
        if self._due is _Due.HEAD and self._head_bytes > limit:
            raise _Refused(431, _TOO_LARGE)
        beside = self._read_bytes - self._body_bytes - _CHUNK_LINE_BYTES * self._chunks
        if self._due is _Due.BODY and self._length is None and beside > limit:
            raise _Refused(400, "too much between the chunks")

    def _watch(self) -> None:
        """Have a timer for what is due, and the answer be the last one when it comes too early."""
        if self._due is not self._timed:
            self._timed = self._due
            self._set_timer()
        cycle = self.cycle
        if self._due is _Due.HEAD or cycle is None or cycle.response_started:
            return
        self._held = self._due is _Due.BODY and (
            self._length is None or self._length - self._body_bytes > _SURPLUS_BYTES
        )
        cycle.keep_alive = self._lasting and not self._held
        cycle.close = self._linger if self._held else self.transport.close

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due is _Due.HEAD:
            self._timer = self.loop.call_later(
                self.limits.header_seconds, self._refuse, 408, "the headers took too long"
            )
        elif self._due is _Due.BODY:
            self._body_due = self.loop.time() + self.limits.body_seconds
            self._time_body()

    def _time_body(self) -> None:
        seconds = min(_RATE_SECONDS, self._body_due - self.loop.time())
        enough_bytes = self._read_bytes + self.limits.body_rate_bytes * seconds
        self._timer = self.loop.call_later(max(0.0, seconds), self._check_body, enough_bytes)

    def _check_body(self, enough_bytes: float) -> None:
        if self.loop.time() >= self._body_due:
            self._refuse(408, TOO_SLOW)
        elif self._read_bytes < enough_bytes and not self.flow.read_paused:
            self._refuse(408, "the body comes too slowly")
        else:
            self._time_body()

    def _be_idle(self) -> None:
        # One timer for many requests: to set and to cancel one for each is a good part of what a small one costs.
        self._idle_since = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.limits.keep_alive_seconds, self._check_idle)

    def _check_idle(self) -> None:
        """Close what is idle; who still takes its last answer is not, as long as it takes some of it."""
        self._idle = None
        if self._idle_since is None or self.flow.write_paused:
            return
        left = self._idle_since + self.limits.keep_alive_seconds - self.loop.time()
        if left > 0:
            self._idle = self.loop.call_later(left, self._check_idle)
        else:
            self.transport.abort()

    def _refuse(self, status: int, why: str) -> None:
        """Read no further. What is wrong is the answer, unless that would be a second one."""
        cycle, self._deaf = self.cycle, True
        under_way = cycle is not None and not cycle.response_complete
        if under_way and self._due is not _Due.BODY:  # what is wrong comes after a request that is complete
            cycle.keep_alive = False
            cycle.close = self._linger
            return
        scope = cast("dict[str, Any]", cycle.scope) if under_way else {}
        if self._due is not _Due.BODY or not cycle.response_started:
            body = json.dumps({"error": why}).encode()
            more = b"retry-after: 1\r\n" if status == 503 else b""
            if "request_id" in scope:  # as answers have it that the application gives
                more += b"x-request-id: %s\r\n" % scope["request_id"].encode()
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
                + more
                + b"connection: close\r\n\r\n"
                + body
            )
        if under_way:  # nobody waits for the application's answer any more
            scope[REFUSED] = (status, why)
            cycle.waiting_for_100_continue = False
            cycle.disconnected = True
            cycle.message_event.set()
        self._linger()

    def _linger(self) -> None:
        """Close, once the client has had the time to read its answer."""
        self._deaf = True
        self._stop_timers()
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.flow.resume_reading()
            self._expect_taken(_LINGER_SECONDS)

    def _discard(self, size_bytes: int) -> None:
        self._discarded_bytes += size_bytes
        if self._discarded_bytes > _LINGER_BYTES:
            self.transport.abort()

    def _expect_taken(self, seconds: float) -> None:
        """Cut the client off unless it takes some of its answer within `seconds`, again and again."""
        if self._stall is not None:
            self._stall.cancel()
        left = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(seconds, self._check_taken, seconds, left)

    def _check_taken(self, seconds: float, before_bytes: int) -> None:
        if 0 < self.transport.get_write_buffer_size() < before_bytes:
            self._expect_taken(seconds)
        else:
            self.transport.abort()

    def _stop_timers(self) -> None:
        for timer in (self._timer, self._stall, self._idle):
            if timer is not None:
                timer.cancel()


def limited(limits: Limits) -> type[Connection]:
    """The protocol for uvicorn that keeps to `limits`."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
