"""A blob's bytes in order, in pieces of any size."""

import contextlib
from collections.abc import Iterator
from threading import Event

from mlimg.runtime.descriptor import Blob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, LocalIOError, Stopped


class Outgoing:
    """One reading of a blob, from its start. Not safe to use from several threads.

    Every method raises what `blob.chunks()` raises, and IntegrityError when there are fewer or more bytes than the
    blob announced.
    """

    def __init__(self, blob: Blob, name: str, stop: Event) -> None:
        self.position = 0  # of the next byte that `take` gives
        self._blob = blob
        self._name = name
        self._stop = stop
        self._chunks = blob.chunks()
        self._rest = memoryview(b"")
        self._read_bytes = 0

    def skip_to(self, offset: int) -> None:
        """Read what need not be sent. Raises Stopped."""
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
        if self._blob.digest is None:
            raise IntegrityError(f"a blob for {self._name} has no digest though it was read to its end")
        return self._blob.digest

    def close(self) -> None:
        """Give up the reading; nobody touches its bytes afterwards."""
        with contextlib.suppress(AttributeError):
            self._chunks.close()  # type: ignore[attr-defined]  # a generator holds a file open

    def _next(self) -> None:
        try:
            chunk = next(self._chunks, None)
        except OSError as error:
            raise LocalIOError(f"cannot read what is to be sent: {error}") from error
        if chunk is None or self._read_bytes + len(chunk) > self._blob.size_bytes:
            raise self._wrong_length()
        self._rest = memoryview(chunk)
        self._read_bytes += len(chunk)

    def _wrong_length(self) -> IntegrityError:
        return IntegrityError(f"a blob for {self._name} is not as long as announced while it is sent")
