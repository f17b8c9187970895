"""A file's sha256, made in a thread of its own behind whoever reads the file."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from mlimg.runtime.digest import READ_SIZE_BYTES

if TYPE_CHECKING:
    import hashlib

_WORTH_A_THREAD_BYTES: Final = 64 * 1024


class HashBehind:
    """Hashes buffers in turn, in a thread of its own, behind whoever fills them.

    There are two: while one is hashed and sent, the other is filled.
    """

    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(READ_SIZE_BYTES)) for _ in range(2)]
        self._updates: list[Future[None] | None] = [None, None]
        self._turn = 0
        self._thread: ThreadPoolExecutor | None = None

    def buffer(self) -> memoryview:
        """The next buffer to fill, which holds until the next but one is asked for."""
        self._turn ^= 1
        self._finish(self._turn)
        return self._buffers[self._turn]

    def update(self, sha256: "hashlib._Hash", chunk: memoryview) -> None:
        """Hash what the last buffer holds now."""
        if len(chunk) < _WORTH_A_THREAD_BYTES:
            self.wait()
            sha256.update(chunk)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash-file")
        self._updates[self._turn] = self._thread.submit(sha256.update, chunk)

    def wait(self) -> None:
        """Until everything is hashed."""
        self._finish(0)
        self._finish(1)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _finish(self, turn: int) -> None:
        update, self._updates[turn] = self._updates[turn], None
        if update is not None:
            update.result()
