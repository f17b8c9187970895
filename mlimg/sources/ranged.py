"""A remote file that is read like a local one: in order it is one stream, after a seek it is asked for from there.

A connection that breaks is taken up again where it broke. Whoever reads a file from its first byte to its last has it
checked on the way: its length, and its sha256 where the listing tells one.
"""

import hashlib
import io
import random
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, RemoteTemporaryError, printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Attempt = Callable[[int], Generator[bytes, None, None]]
"""Gives a file's bytes from an offset on, in one attempt.

Raises RemoteTemporaryError when the connection breaks or stalls; RemoteError, CredentialsError.
"""

_WORTH_A_REQUEST_BYTES: Final = 256 * 1024  # a shorter way ahead is read and dropped
_LONGEST_WAIT_SECONDS: Final = 60.0


class RangedFile(io.RawIOBase):
    """An open remote file, unbuffered. It never gives bytes beyond the listed length."""

    def __init__(
        self,
        name: str,
        size_bytes: int,
        read: Attempt,
        *,
        sha256: Digest | None = None,
        attempts: int = 5,
        backoff_seconds: float = 0.5,
    ) -> None:
        super().__init__()
        self._name = name
        self._size_bytes = size_bytes
        self._read = read
        self._wanted = sha256
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._at = 0  # where the next read begins
        self._stream: Generator[bytes, None, None] | None = None
        self._streamed = 0  # where the stream stands: the rest of its last piece begins there
        self._rest = memoryview(b"")
        self._sha256 = hashlib.sha256()
        self._hashed = 0  # so many bytes from the start are in the sha256

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: where the place knows no ranges, a seek costs the bytes before it."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set where the next read begins; nothing is asked for yet."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        if start + offset < 0:
            raise ValueError("a file has no place before its start")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill `buffer` as far as the bytes at hand go. Raises IntegrityError, RemoteError, RemoteTemporaryError."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size_bytes - self._at)
        if wanted <= 0:
            return 0
        piece = self._next(wanted)
        size = len(piece)
        view[:size] = piece
        self._check(piece)
        self._at += size
        self._finish()
        return size

    def close(self) -> None:
        """Let the connection go."""
        self._drop()
        super().close()

    def _next(self, wanted: int) -> memoryview:
        """Some bytes at `_at`, at most `wanted`; tries again where the connection breaks."""
        attempts, delay = self._attempts, self._backoff_seconds
        while True:
            try:
                return self._attempt(wanted)
            except RemoteTemporaryError:
                self._drop()
                attempts -= 1
                if attempts <= 0:
                    raise
                # Jitter, not cryptography: it keeps many readers from coming back at the same moment.
                time.sleep(min(delay * random.uniform(0.5, 1.5), _LONGEST_WAIT_SECONDS))  # noqa: S311
                delay *= 2

    def _attempt(self, wanted: int) -> memoryview:
        if not self._streamed <= self._at <= self._streamed + _WORTH_A_REQUEST_BYTES:
            self._drop()
        if self._stream is None:
            self._stream, self._streamed, self._rest = self._read(self._at), self._at, memoryview(b"")
        while True:
            while not self._rest:
                piece = next(self._stream, None)
                if piece is None:
                    raise RemoteTemporaryError(
                        f"`{printable(self._name)}` ended after {self._streamed} of {self._size_bytes} bytes"
                    )
                self._rest = memoryview(piece)
            if self._streamed == self._at:
                break
            skipped = min(len(self._rest), self._at - self._streamed)
            self._rest = self._rest[skipped:]
            self._streamed += skipped
        taken, self._rest = self._rest[:wanted], self._rest[wanted:]
        self._streamed += len(taken)
        return taken

    def _check(self, piece: memoryview) -> None:
        """Hash what follows the bytes that are hashed already; whoever jumps about is not checked."""
        if self._wanted is None:
            return
        if self._at == 0 and self._hashed:
            self._sha256, self._hashed = hashlib.sha256(), 0
        if self._at == self._hashed:
            self._sha256.update(piece)
            self._hashed += len(piece)

    def _finish(self) -> None:
        """At the end: nothing may follow, and the sha256 must be the listed one."""
        if self._at < self._size_bytes:
            return
        more = bool(self._rest)
        self._drop()
        if more:
            raise IntegrityError(
                f"`{printable(self._name)}` has more than the {self._size_bytes} bytes it was listed with"
            )
        if self._wanted and self._hashed == self._size_bytes and self._sha256.hexdigest() != self._wanted.hex:
            raise IntegrityError(
                f"`{printable(self._name)}` arrived with other content than its sha256 says",
                hint="if the file was replaced on purpose, write the sha256 of the new one",
            )

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._rest = None, memoryview(b"")
        self._streamed = 0
