"""Bodies that clients send compressed, and answers that they take so: by `gzip`, or by `deflate`, which is zlib's."""

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.types import Scope

from mlimg.runtime.server.exchange import Codec, Query, Reply
from mlimg.runtime.server.http import header
from mlimg.runtime.server.metadata import Arrays, ModelMetadata

_WINDOWS: Final = {"gzip": 31, "deflate": 15}  # how zlib is told the format
_AT_ONCE_BYTES: Final = 64 * 1024  # takes the event loop well under a millisecond
_WORTH_BYTES: Final = 1024
# One large body after the other, so that many bombs take no more memory than one.
_beside: Final = ThreadPoolExecutor(1, "inflate")


def check_encoding(encoding: str) -> None:
    """Refuse what `inflated` does not know, before the body is read. Raises HTTPException."""
    if encoding not in _WINDOWS:
        raise HTTPException(415, "a body may be compressed by gzip or deflate", {"Accept-Encoding": "gzip, deflate"})


async def inflated(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """A compressed body as it was; what is large is inflated beside the event loop.

    Raises HTTPException: 400 when it is malformed, 413 when it holds more than the limit, of which no more is inflated.
    """
    stream = zlib.decompressobj(_WINDOWS[encoding])
    try:
        head = content = stream.decompress(body, min(_AT_ONCE_BYTES, limit_bytes + 1))
        if len(content) == _AT_ONCE_BYTES <= limit_bytes:
            most = limit_bytes + 1 - len(head)
            loop = asyncio.get_running_loop()
            content = await loop.run_in_executor(
                _beside, lambda: head + stream.decompress(stream.unconsumed_tail, most)
            )
    except zlib.error as error:
        raise HTTPException(400, f"the body is not {encoding}") from error
    if len(content) > limit_bytes:
        raise HTTPException(413, f"the body is over {limit_bytes // 2**20} MiB when it is inflated")
    if not stream.eof or stream.unused_data:
        raise HTTPException(400, f"the body is {encoding} that ends {'too soon' if not stream.eof else 'before it'}")
    return content


def compressing(codec: Codec, scope: Scope) -> Codec:
    """`codec`, whose answers are compressed when the request takes that."""
    accepted = header(scope, b"accept-encoding")
    encoding = _choice(accepted) if accepted else ""
    return _Compressing(codec, encoding) if encoding else codec


@lru_cache(64)  # clients of one kind all send the same
def _choice(accepted: str) -> str:
    """An encoding that `Accept-Encoding` names and does not refuse (`q=0`); empty if there is none."""
    named = {}
    for item in accepted.lower().split(","):
        name, _, weight = item.partition(";")
        named[name.strip()] = weight.replace(" ", "").rstrip("0.") != "q="
    return next((name for name in _WINDOWS if named.get(name)), "")


class _Compressing(NamedTuple):
    """Compresses what another codec writes, where the model is."""

    codec: Codec
    encoding: str

    def read(self, model: ModelMetadata, body: bytes) -> Query:
        return self.codec.read(model, body)

    def write(self, model: ModelMetadata, query: Query, tensors: Arrays) -> Reply:
        reply = self.codec.write(model, query, tensors)
        if len(reply.body) < _WORTH_BYTES:
            return reply
        stream = zlib.compressobj(1, zlib.DEFLATED, _WINDOWS[self.encoding])  # the fastest: tensors shrink little
        body = stream.compress(reply.body) + stream.flush()
        return reply._replace(body=body, headers={**reply.headers, "content-encoding": self.encoding})
