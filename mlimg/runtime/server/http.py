"""Requests and answers of HTTP, as ASGI has them, read once and without frills: this is on every request's way."""

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlimg.runtime.server.exchange import Reply

RETRY: Final = {"Retry-After": "1"}
TOO_SLOW: Final = "the body took too long"  # to arrive: 408
REFUSED: Final = "mlimg.refused"  # in a scope: with which status and why its connection has answered already
_BY_NAME: Final = "mlimg.headers"


class JSON(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode `content`; bytes are JSON already."""
        return content if isinstance(content, bytes) else json.dumps(content, allow_nan=False).encode()


def header(scope: Scope, name: bytes) -> str:
    """A header of a request by its name in lower case, the first of several; empty when it is not there."""
    found: Mapping[bytes, bytes] | None = scope.get(_BY_NAME)
    if found is None:  # several are asked for of each request
        found = scope[_BY_NAME] = dict(reversed(scope["headers"]))
    value = found.get(name)
    return "" if value is None else value.decode("latin-1")


async def send_reply(send: Send, reply: Reply) -> None:
    """Send an answer with status 200."""
    headers = [(b"content-type", reply.media_type.encode()), (b"content-length", b"%d" % len(reply.body))]
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


class Room:
    """The memory that bodies may take together while they arrive: those of slow clients are in no queue yet."""

    def __init__(self, size_bytes: int) -> None:
        self._free_bytes = size_bytes

    def take(self, size_bytes: int) -> None:
        """Take some of it. Raises HTTPException when there is not so much."""
        if size_bytes > self._free_bytes:
            raise HTTPException(503, "the bodies that are arriving take all the memory they may", RETRY)
        self._free_bytes -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Give back what was taken."""
        self._free_bytes += size_bytes


async def read_body(scope: Scope, receive: Receive, limit_bytes: int, room: Room) -> bytes:
    """A request's body. Raises HTTPException: 413 when it is too large, 503 without room, 499 without client."""
    length = header(scope, b"content-length") or "0"
    if not (length.isascii() and length.isdigit()) or len(length) > 18 or int(length) > limit_bytes:
        raise _too_large(limit_bytes)
    parts: list[bytes] = []
    size_bytes = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HTTPException(*scope[REFUSED]) if REFUSED in scope else gone()
            part = message.get("body", b"")
            if size_bytes + len(part) > limit_bytes:
                raise _too_large(limit_bytes)
            room.take(len(part))
            size_bytes += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        room.give_back(size_bytes)


async def disconnected(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def leaving() -> HTTPException:
    """What turns a request away once the server drains."""
    return HTTPException(503, "the server is shutting down", RETRY)


def gone() -> HTTPException:
    """What ends a request that nobody waits for."""
    return HTTPException(499, "the client is gone")


def _too_large(limit_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body is over {limit_bytes // 2**20} MiB")


def error_body(error: HTTPException, request_id: str) -> Mapping[str, Any]:
    """What a client is told of what went wrong; with an id when it is not the client's mistake."""
    body = {"error": error.detail}
    return body if error.status_code < 500 else {**body, "request_id": request_id}
