"""Reporters for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Titles:
    """Keeps the titles of steps, of them that ended well, and what else it was told."""

    begun: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    warn = note

    def advance(self, size_bytes: int) -> None: ...
    def update(self, text: str) -> None: ...

    @contextmanager
    def step(self, title: str, total_bytes: int | None = None) -> Iterator["Titles"]:
        self.begun.append(title)
        yield self
        self.done.append(title)
