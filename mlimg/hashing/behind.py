"""Hashing in a thread of its own, behind whoever reads or sends the bytes."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

Chunk = bytes | memoryview
_WORTH_A_THREAD_BYTES: Final = 64 * 1024


class HashBehind:
    """Hashes chunks in the order in which they are given. Who gives one keeps it as it is until `wait` says so."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending: deque[Future[None]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def update(self, hashing: Callable[[Chunk], None], chunk: Chunk) -> None:
        """Hash a chunk, soon."""
        if len(chunk) < _WORTH_A_THREAD_BYTES:
            self.wait()
            hashing(chunk)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._pending.append(self._thread.submit(hashing, chunk))

    def wait(self, behind: int = 0) -> None:
        """Until no more than the last `behind` chunks are not hashed."""
        while len(self._pending) > behind:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread; it touches no chunk afterwards."""
        if self._thread is not None:
            self._thread.shutdown()
