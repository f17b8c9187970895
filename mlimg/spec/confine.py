"""Paths that a spec names stay in the project, or in a folder that the person at the keyboard allowed.

A spec often comes with a change that somebody else proposed; it must not choose files of the machine that builds.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mlimg.runtime.errors import printable


class OutsideError(ValueError):
    """A path leads out of the folders; `resolved` is where to, None when it leads nowhere."""

    def __init__(self, message: str, resolved: Path | None) -> None:
        super().__init__(message)
        self.resolved = resolved

    @property
    def hint(self) -> str:
        """The flag that would allow it."""
        return f"to let the spec name it: --allow-path {shlex.quote(str(self.resolved))}" if self.resolved else ""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a spec's paths may lead. All are absolute, links resolved; `spec` is what relative paths start from."""

    spec: Path
    project: Path
    allowed: tuple[Path, ...]

    @classmethod
    def around(cls, spec_file: Path, allowed: tuple[Path, ...]) -> Self:
        """The folders for a spec: the project is the nearest folder with `.git`, else the spec's own."""
        folder = spec_file.absolute().parent.resolve()
        project = next((above for above in (folder, *folder.parents) if _has_git(above)), folder)
        return cls(folder, project, tuple(path.absolute().resolve() for path in allowed))

    def file(self, text: str) -> Path:
        """Where `text` leads, links resolved; nothing need be there. Raises OutsideError."""
        try:
            resolved = (self.spec / text).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links before Python 3.13
            raise OutsideError(
                f"`{printable(text)}` leads nowhere: its links go in circles or are unreadable", None
            ) from error
        if any(resolved.is_relative_to(folder) for folder in (self.project, *self.allowed)):
            return resolved
        raise OutsideError(f"`{printable(text)}` leads out of the project, {printable(str(self.project))}", resolved)


def _has_git(folder: Path) -> bool:
    try:
        return (folder / ".git").exists()  # a folder, or a file in a work tree
    except OSError:  # a folder above that may not be searched
        return False
