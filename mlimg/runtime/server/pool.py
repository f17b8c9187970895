"""Predictions run in a bounded pool of threads: what does not fit is refused at once, never piled up."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Saturated(Exception):  # noqa: N818 (a state, told to the client as 503)
    """All workers are busy and the queue is full."""


class Pool:
    """`workers` threads and `queue` waiting places."""

    def __init__(self, workers: int, queue: int) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="predict")
        self._places = workers + queue
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def saturated(self) -> bool:
        """Whether `submit` would refuse."""
        return self._taken >= self._places

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in a thread; cancelling the future while it waits frees its place. Raises Saturated."""
        with self._lock:
            if self.saturated:
                raise Saturated
            self._taken += 1
        future = self._executor.submit(work)
        future.add_done_callback(self._leave)
        return future

    def _leave(self, _future: Future[T]) -> None:
        with self._lock:
            self._taken -= 1
