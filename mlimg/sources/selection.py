"""Which files of a place are the model: patterns that take some in and leave others out.

A pattern is matched against a file's whole path. ``*`` and ``?`` stay within one part of it, ``**`` as a part stands
for any number of folders, ``[abc]`` for one of some characters: ``*.json`` is a file at the top, ``**/*.json`` one
anywhere, ``weights/**`` all that lies below a folder.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import TypeVar

from mlimg.runtime.errors import ModelError

_T = TypeVar("_T")


def check_pattern(text: str) -> str:
    """Return `text` if it is a pattern. Raises ValueError with the rule that is broken."""
    if not text or text.startswith(("/", "./", "!")) or text.endswith("/") or len(text.encode()) > 1024:
        raise ValueError("expected a pattern of paths below the model's folder, such as `*.json` or `weights/**`")
    if not text.isprintable() or "\\" in text:
        raise ValueError("a pattern has no control characters and no backslash")
    for part in text.split("/"):
        if part in {"", ".", ".."} or ("**" in part and part != "**"):
            raise ValueError("a part of a pattern is not empty, `.` or `..`, and `**` stands alone")
    _compiled(text)
    return text


@dataclass(frozen=True, slots=True)
class Selection:
    """The patterns of one model; it keeps account of which of them found something."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    _found: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def takes(self, path: str) -> bool:
        """Whether a file belongs to the model."""
        included = self._matching(self.include, path)
        excluded = self._matching(self.exclude, path)
        return not excluded and (included or not self.include)

    def leaves_out(self, folder: str) -> bool:
        """Whether nothing below a folder belongs to the model, so that it need not even be looked into."""
        below = [pattern for pattern in self.exclude if pattern.endswith("/**")]
        return self._matching(below, f"{folder}/x")

    def choose(self, files: Iterable[_T], path_of: Callable[[_T], str]) -> list[_T]:
        """The files that belong to the model. Raises ModelError as `check_found`."""
        chosen = [file for file in files if self.takes(path_of(file))]
        self.check_found()
        return chosen

    def check_found(self) -> None:
        """Raise ModelError for a pattern that has matched no file: it is most likely misspelt."""
        for key, patterns in (("model.include", self.include), ("model.exclude", self.exclude)):
            for pattern in patterns:
                if pattern not in self._found:
                    raise ModelError(
                        f"{key}: `{pattern}` matches no file of the model",
                        hint="`*` stays within one folder, `**/` goes through all: `**/*.json`",
                    )

    def _matching(self, patterns: Iterable[str], path: str) -> bool:
        found = [pattern for pattern in patterns if _compiled(pattern).fullmatch(path)]
        self._found.update(found)
        return bool(found)


EVERYTHING = Selection()


@cache
def _compiled(pattern: str) -> "re.Pattern[str]":
    parts = PurePosixPath(pattern).parts
    text = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            text += ".+" if last else "(?:[^/]+/)*"
        else:
            text += _part(part) + ("" if last else "/")
    try:
        return re.compile(text)
    except re.error:
        raise ValueError(f"`{pattern}` is not a pattern") from None


def _part(part: str) -> str:
    text, at = "", 0
    while at < len(part):
        char = part[at]
        end = part.find("]", at + 2) if char == "[" else -1
        if end > 0:
            inner = part[at + 1 : end]
            negated = inner.startswith("!")
            body = re.sub(r"([\\^\[\]&~|])", r"\\\1", inner[1:] if negated else inner)
            text += f"(?!/)[{'^' if negated else ''}{body}]"
            at = end + 1
            continue
        text += {"*": "[^/]*", "?": "[^/]"}.get(char) or re.escape(char)
        at += 1
    return text
