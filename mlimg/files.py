"""Small files, read whole and once: what goes into a build context is a snapshot."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from mlimg.runtime.errors import ContextError, LimitError, LocalIOError, printable

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
_CACHES: Final = frozenset({"__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A file of a build context, in memory (server code and templates are small)."""

    path: PurePosixPath
    data: bytes
    mode: int = 0o644


def read_context_file(path: Path, name: PurePosixPath) -> ContextFile:
    """Read one file for a build context, modes reduced to executable or not. Raises as `read_file`."""
    data, mode = _read(path)
    return ContextFile(name, data, 0o755 if mode & stat.S_IXUSR else 0o644)


def read_context_folder(root: Path) -> Iterator[ContextFile]:
    """Read the files of a folder, whose names become relative to it.

    Hidden files and caches stay out: secrets and histories live there. Links are refused, for they lead outside.
    Raises as `read_file`.
    """
    for top, folders, names in os.walk(root, onerror=_raise):
        # What is a link to a folder stands among the folders, and is not walked.
        linked = [name for name in folders if os.path.islink(f"{top}/{name}")]  # noqa: PTH114 (says no where it may not look)
        folders[:] = sorted(name for name in folders if not _stays_out(name) and name not in linked)
        for name in sorted([*names, *linked]):
            if not _stays_out(name):
                path = Path(top, name)
                yield read_context_file(path, _context_path(path.relative_to(root)))


def read_file(path: Path) -> bytes:
    """Read a small regular file whole, and notice when it changes meanwhile.

    Raises ContextError for links, devices and changing files, LimitError over 64 MiB, LocalIOError.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[bytes, int]:
    """The content and the mode of one file, of the same file."""
    shown = printable(str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ContextError(f"{shown}: not a regular file")
            if before.st_size > MAX_FILE_BYTES:
                raise LimitError(f"{shown}: {before.st_size} bytes, over {MAX_FILE_BYTES // 2**20} MiB")
            data = file.read(MAX_FILE_BYTES + 1)
            after = os.fstat(descriptor)
    except OSError as error:
        if error.errno == errno.ELOOP:  # as O_NOFOLLOW says it
            raise ContextError(
                f"{shown}: a link cannot be copied into an image", hint="copy the file itself"
            ) from error
        raise LocalIOError(f"{shown}: {error.strerror}") from error
    if len(data) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise ContextError(f"{shown}: changed while it was read", hint="run again when nothing writes to it")
    return data, before.st_mode


def _context_path(path: Path) -> PurePosixPath:
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise ContextError(f"{printable(str(path))}: the name is not UTF-8", hint="rename the file") from None
    return PurePosixPath(path.as_posix())


def _stays_out(name: str) -> bool:
    return name.startswith(".") or name.endswith(".pyc") or name in _CACHES


def _raise(error: OSError) -> None:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise ContextError(f"there is no folder {printable(str(error.filename))}") from error
    raise LocalIOError(f"{printable(str(error.filename))}: {error.strerror}") from error
