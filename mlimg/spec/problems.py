"""What is wrong with a spec: every problem with its place, told together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from mlimg.runtime.errors import SpecError, printable

MAX_SHOWN: Final = 20  # a file that is no spec at all would otherwise scroll its first problem away
MAX_MESSAGE_CHARACTERS: Final = 500


class Code(StrEnum):
    """The kind of a problem, for programs; the message is for people and may change."""

    SYNTAX = "E-SPEC-SYNTAX"
    DUPLICATE_KEY = "E-SPEC-DUPKEY"
    ALIAS = "E-SPEC-ALIAS"
    TAG = "E-SPEC-TAG"
    UNKNOWN_KEY = "E-SPEC-UNKNOWN"
    MISSING = "E-SPEC-MISSING"
    TYPE = "E-SPEC-TYPE"
    VALUE = "E-SPEC-VALUE"
    PATH = "E-SPEC-PATH"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something is written: ``mlimg.yaml:4:12``, or ``MLIMG_SET`` and ``--set``, which have no lines.

    Places in the file sort before those laid over it, in the order of reading.
    """

    layer: int
    line: int
    column: int
    name: str

    @classmethod
    def in_file(cls, name: str, line: int, column: int) -> Self:
        """A place in the spec; lines and columns count from 1, as editors do."""
        return cls(0, line, column, name)

    @classmethod
    def named(cls, name: str, layer: int = 0) -> Self:
        """A place that its name alone tells, such as a setting laid over the spec."""
        return cls(layer, 0, 0, name)

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing to mend. `key` is dotted, such as ``server.version``; empty where none is known yet."""

    place: Place
    key: str
    message: str
    code: Code
    hint: str = field(default="", compare=False)

    def __str__(self) -> str:
        shown = printable(": ".join(part for part in (str(self.place), self.key, self.message) if part))
        return shown if len(shown) <= MAX_MESSAGE_CHARACTERS else shown[:MAX_MESSAGE_CHARACTERS] + "…"

    def to_json(self) -> dict[str, str]:
        """The same facts for programs."""
        return {"place": str(self.place), "key": printable(self.key), "message": str(self), "code": self.code.value}


class InvalidSpecError(SpecError):
    """All problems of a spec: a line each in `log` (a lone one is the message), the facts in `problems`."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        lines = [str(problem) for problem in self.problems]
        hidden = len(lines) - MAX_SHOWN
        log = lines[:MAX_SHOWN] + ([f"… and {hidden} more"] if hidden > 0 else [])
        hints = dict.fromkeys(printable(problem.hint) for problem in self.problems if problem.hint)
        super().__init__(
            lines[0] if len(lines) == 1 else f"{printable(name)} has {len(lines)} problems",
            hint="\n".join(list(hints)[:3]),
            log=() if len(lines) == 1 else log,
        )
