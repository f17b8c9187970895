"""A blob's bytes in order, in pieces of any size, hashed on their way where nobody knows their digest."""

import contextlib
import hashlib
from collections.abc import Iterator
from threading import Event

from mlimg.runtime.descriptor import CHUNKS_HELD, Blob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, LocalIOError, Stopped
from mlimg.runtime.hash_behind import HashBehind


class Outgoing:
    """One reading of a blob, from its start. Not safe to use from several threads.

    Chunks are hashed behind the caller, who sends them and reads the next ones. Every method raises what
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
        self._behind = HashBehind("hash-blob")

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
        self._behind.wait()
        return self._blob.digest or Digest(f"sha256:{self._sha256.hexdigest()}" if self._sha256 else "")

    def close(self) -> None:
        """Give up the reading; nobody touches its bytes afterwards."""
        self._behind.close()
        with contextlib.suppress(AttributeError):
            self._chunks.close()  # type: ignore[attr-defined]  # a generator holds a file open

    def _next(self) -> None:
        self._behind.wait(CHUNKS_HELD - 1)
        try:
            chunk = next(self._chunks, None)
        except OSError as error:
            raise LocalIOError(f"cannot read what is to be sent: {error}") from error
        if chunk is None or self._read_bytes + len(chunk) > self._blob.size_bytes:
            raise self._wrong_length()
        self._rest = memoryview(chunk)
        self._read_bytes += len(chunk)
        if self._sha256 is not None:
            self._behind.update(self._sha256, self._rest)

    def _wrong_length(self) -> IntegrityError:
        return IntegrityError(f"a blob for {self._name} is not as long as announced while it is sent")
