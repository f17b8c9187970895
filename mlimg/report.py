"""What the stages tell the person who waits. `cli` shows it; everything below only speaks."""

from contextlib import AbstractContextManager
from typing import Protocol


class Step(Protocol):
    """One thing under way, counted in bytes where it moves bytes."""

    def advance(self, size_bytes: int) -> None:
        """Count bytes that moved."""

    def update(self, text: str) -> None:
        """Say what is being done now, such as the engine's current build step."""


class Reporter(Protocol):
    """Where stages report. Nothing of it reaches stdout."""

    def note(self, text: str) -> None:
        """Tell a fact worth a line."""

    def warn(self, text: str) -> None:
        """Tell something the person may want to change."""

    def step(self, title: str, total_bytes: int | None = None) -> AbstractContextManager[Step]:
        """Open a step; leaving it closes it, with its time."""
