"""How far a model's way to this machine is."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["resolving", "fetching", "verifying"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a model's way to this machine is. `bytes_total` is 0 while it is not known."""

    phase: Phase
    bytes_done: int = 0
    bytes_total: int = 0


class Counter:
    """Adds up bytes from several threads and passes the sum on."""

    def __init__(self, phase: Phase, total_bytes: int, progress: Callable[[Progress], None]) -> None:
        self.done_bytes = 0
        self._phase = phase
        self._total_bytes = total_bytes
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, size_bytes: int) -> None:
        """Count bytes that moved."""
        with self._lock:
            self.done_bytes += size_bytes
            self._progress(Progress(self._phase, self.done_bytes, self._total_bytes))
