"""A blob's bytes in order, in pieces of any size, hashed on their way where nobody knows their digest."""

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Final

from mlimg.runtime.descriptor import Blob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, LocalIOError, Stopped

_WORTH_A_THREAD_BYTES: Final = 64 * 1024


class Outgoing:
    """One reading of a blob, from its start. Not safe to use from several threads.

    A chunk is hashed by a helper while the caller sends it and reads the next one. Every method raises what
    `blob.chunks()` raises, and IntegrityError when there are fewer or more bytes than the blob announced.
    """

    def __init__(self, blob: Blob, name: str, stop: Event) -> None:
        self.position = 0  # of the next byte that `take` gives
        self._blob = blob
        self._name = name
        self._stop = stop
        self._chunks = blob.chunks()
        self._rest = memoryview(b"")
        self._read_bytes = 0
        self._sha256 = hashlib.sha256() if blob.digest is None else None
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="hash-blob") if blob.digest is None else None
        self._hashing: Future[None] | None = None

    def skip_to(self, offset: int) -> None:
        """Read and hash what need not be sent. Raises Stopped."""
        for _ in self.take(offset - self.position):
            if self._stop.is_set():
                raise Stopped

    def take(self, size_bytes: int) -> Iterator[memoryview]:
        """The next bytes, exactly so many; a piece is valid until the next one is asked for."""
        while size_bytes:
            if not self._rest:
                self._next()
            part = self._rest[:size_bytes]
            self._rest = self._rest[len(part) :]
            self.position += len(part)
            size_bytes -= len(part)
            yield part

    def finish(self) -> Digest:
        """The digest of all bytes, after the last one was taken."""
        if self._rest or self._read_bytes != self._blob.size_bytes or any(len(chunk) for chunk in self._chunks):
            raise self._wrong_length()
        self._hashed()
        return self._blob.digest or Digest(f"sha256:{self._sha256.hexdigest()}" if self._sha256 else "")

    def close(self) -> None:
        """Give up the reading; no helper touches its bytes afterwards."""
        if self._helper is not None:
            self._helper.shutdown()
        with contextlib.suppress(AttributeError):
            self._chunks.close()  # type: ignore[attr-defined]  # a generator holds a file open

    def _next(self) -> None:
        try:
            chunk = next(self._chunks, None)
        except OSError as error:
            raise LocalIOError(f"cannot read what is to be sent: {error}") from error
        self._hashed()
        if chunk is None or self._read_bytes + len(chunk) > self._blob.size_bytes:
            raise self._wrong_length()
        self._rest = memoryview(chunk)
        self._read_bytes += len(chunk)
        if self._sha256 is None or self._helper is None:
            return
        if len(chunk) < _WORTH_A_THREAD_BYTES:
            self._sha256.update(chunk)
        else:
            self._hashing = self._helper.submit(self._sha256.update, chunk)

    def _hashed(self) -> None:
        """Wait until the helper has done with the chunk before."""
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None

    def _wrong_length(self) -> IntegrityError:
        return IntegrityError(f"a blob for {self._name} is not as long as announced while it is sent")
