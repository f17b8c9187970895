"""Progress for a person who watches: one moving line a step, and what it came to when it is done."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from mlimg.cli.units import seconds, size
from mlimg.runtime.errors import printable


class _LiveStep:
    def __init__(self, progress: Progress, task: TaskID, total_bytes: int | None) -> None:
        self._progress = progress
        self._task = task
        self._of = f" of {size(total_bytes)}" if total_bytes else ""
        self.moved_bytes = 0

    def advance(self, size_bytes: int) -> None:
        self.moved_bytes += size_bytes
        self._progress.update(self._task, detail=size(self.moved_bytes) + self._of)

    def update(self, text: str) -> None:
        self._progress.update(self._task, detail=printable(text))


class LiveReporter:
    """Draws on stderr with rich, which honours NO_COLOR by itself."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def note(self, text: str) -> None:
        """Write a line above what moves."""
        self._console.print(Text(printable(text)))

    def warn(self, text: str) -> None:
        """Write a line that stands out."""
        self._console.print(Text.assemble(("warning: ", "yellow"), printable(text)))

    @contextlib.contextmanager
    def step(self, title: str, total_bytes: int | None = None) -> Iterator[_LiveStep]:
        """Draw the step while it lasts; a step inside another is a line below it."""
        title = printable(title)
        started = time.monotonic()
        with self._shared_progress() as progress:
            task = progress.add_task(title, total=None, detail="")
            step = _LiveStep(progress, task, total_bytes)
            try:
                yield step
            finally:
                progress.remove_task(task)
            took = seconds(time.monotonic() - started)
            moved = f", {size(step.moved_bytes)}" if step.moved_bytes else ""
            self._console.print(Text.assemble(("✓ ", "green"), title, (f"  {took}{moved}", "dim")))

    @contextlib.contextmanager
    def _shared_progress(self) -> Iterator[Progress]:
        if self._progress is not None:
            yield self._progress
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._progress = progress
            try:
                yield progress
            finally:
                self._progress = None
