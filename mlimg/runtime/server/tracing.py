"""Which request is being worked on: its id, and its place in a trace that a client began.

https://www.w3.org/TR/trace-context/: what comes malformed is left out, as if it had not come.
"""

import random
import re
from contextvars import ContextVar
from typing import Final, NamedTuple, Self

# Version 00; a later version may be longer, and is read as this one.
_TRACEPARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE: Final = re.compile(r"[!-~ \t]{1,512}")
_FIRST_VERSION: Final = "00"
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
# Not from the system each time: that is a call into the kernel, and with it the turn of another thread.
_ids: Final = random.Random()  # noqa: S311 (an id is no secret)


class Trace(NamedTuple):
    """A place in a trace: what a server that is called on is sent as its headers."""

    trace_id: str
    span_id: str
    flags: str
    tracestate: str = ""

    @classmethod
    def join(cls, traceparent: str, tracestate: str) -> Self | None:
        """A span of our own in the trace of a client's headers; None when there is none."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None or (match[1] == _FIRST_VERSION and match[5] is not None):
            return None
        trace_id, parent_id = match[2], match[3]
        if not trace_id.strip("0") or not parent_id.strip("0"):
            return None
        state = tracestate if _TRACESTATE.fullmatch(tracestate) else ""
        return cls(trace_id, f"{_ids.getrandbits(64):016x}", match[4], state)

    @property
    def traceparent(self) -> str:
        """The header of that name."""
        return f"{_FIRST_VERSION}-{self.trace_id}-{self.span_id}-{self.flags}"

    def headers(self) -> dict[str, str]:
        """What to send along with a call to another server."""
        found = {"traceparent": self.traceparent}
        return {**found, "tracestate": self.tracestate} if self.tracestate else found


class RequestContext(NamedTuple):
    """A request that is being worked on. A value: it goes with the request to the worker."""

    request_id: str
    trace: Trace | None = None

    @classmethod
    def begin(cls, request_id: str, traceparent: str, tracestate: str) -> Self:
        """Read a client's headers, empty where it sent none; without an id that can be logged, it gets one."""
        return cls(
            request_id if _REQUEST_ID.fullmatch(request_id) else f"{_ids.getrandbits(128):032x}",
            Trace.join(traceparent, tracestate) if traceparent else None,
        )


_context: ContextVar[RequestContext | None] = ContextVar("request", default=None)
enter = _context.set


def current() -> RequestContext | None:
    """The request that is being worked on here; None outside of one, and where several are predicted as one.

    A handler that calls another server passes `current().trace.headers()` on.
    """
    return _context.get()
