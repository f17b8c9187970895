"""Small files, read whole and once: what goes into a build context is a snapshot."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from mlimg.runtime.errors import ContextError, LimitError, LocalIOError

MAX_FILE_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A file of a build context, in memory (server code and templates are small)."""

    path: PurePosixPath
    data: bytes
    mode: int = 0o644


def read_context_file(path: Path, name: PurePosixPath) -> ContextFile:
    """Read one file for a build context, modes reduced to executable or not. Raises as `read_file`."""
    data = read_file(path)
    return ContextFile(name, data, 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def read_file(path: Path) -> bytes:
    """Read a small regular file whole, and notice when it changes meanwhile.

    Raises ContextError for links, devices and changing files, LimitError over 64 MiB, LocalIOError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ContextError(f"{path}: not a regular file")
            if before.st_size > MAX_FILE_BYTES:
                raise LimitError(f"{path}: {before.st_size} bytes, over {MAX_FILE_BYTES // 2**20} MiB")
            data = file.read(MAX_FILE_BYTES + 1)
            after = os.fstat(descriptor)
    except OSError as error:
        if Path(path).is_symlink():
            raise ContextError(f"{path}: a link cannot be copied into an image", hint="copy the file itself") from error
        raise LocalIOError(f"{path}: {error.strerror}") from error
    if len(data) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise ContextError(f"{path}: changed while it was read", hint="run again when nothing writes to it")
    return data
