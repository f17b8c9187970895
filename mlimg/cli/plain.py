"""Progress as lines: for logs, pipes and terminals that can do no more."""

import contextlib
import time
from collections.abc import Callable, Iterator

from mlimg.cli.units import seconds, size
from mlimg.runtime.errors import printable

PROGRESS_SECONDS = 10.0


class _PlainStep:
    """Says what is done now, and every ten seconds how far the bytes are."""

    def __init__(self, say: Callable[[str], None], title: str, total_bytes: int | None) -> None:
        self._say = say
        self._title = title
        self._total_bytes = total_bytes
        self._texts: set[str] = set()  # a push tells each layer's state many times a second
        self._said = time.monotonic()
        self.moved_bytes = 0

    def advance(self, size_bytes: int) -> None:
        self.moved_bytes += size_bytes
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS:
            self._said = now
            total = f" of {size(self._total_bytes)}" if self._total_bytes else ""
            self._say(f"  {self._title}: {size(self.moved_bytes)}{total}")

    def update(self, text: str) -> None:
        if text not in self._texts:
            self._texts.add(text)
            self._say(f"  {printable(text)}")


class PlainReporter:
    """Writes lines with `say`; quiet keeps only the warnings."""

    def __init__(self, say: Callable[[str], None], *, quiet: bool = False) -> None:
        self._warn = say
        self._say = _silent if quiet else say

    def note(self, text: str) -> None:
        """Write a line."""
        self._say(printable(text))

    def warn(self, text: str) -> None:
        """Write a line, however quiet."""
        self._warn(f"warning: {printable(text)}")

    @contextlib.contextmanager
    def step(self, title: str, total_bytes: int | None = None) -> Iterator[_PlainStep]:
        """Write a line when the step begins and one when it is done."""
        title = printable(title)
        self._say(f"{title} ...")
        started = time.monotonic()
        step = _PlainStep(self._say, title, total_bytes)
        yield step
        moved = f", {size(step.moved_bytes)}" if step.moved_bytes else ""
        self._say(f"{title}: done in {seconds(time.monotonic() - started)}{moved}")


def _silent(_text: str) -> None:
    """Say nothing."""
