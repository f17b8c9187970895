"""Private folders for what a command needs on disk for a while: with room in them, and gone afterwards."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlimg.runtime.errors import LocalIOError

_HINT = "set TMPDIR to a folder with room"
_in_use: set[str] = set()


def temporary_root() -> Path:
    """Where temporary folders are made."""
    # Where TMPDIR is full or missing, Python falls back to other folders, at last to the current one, and says nothing.
    return Path(os.environ.get("TMPDIR") or tempfile.gettempdir())


@contextmanager
def temporary_folder(prefix: str, needed_bytes: int) -> Iterator[Path]:
    """A folder that only its owner enters, with room for `needed_bytes`.

    Raises LocalIOError, with the bytes needed and free, where there is no room or no folder can be made.
    """
    root = temporary_root()
    try:
        found = os.statvfs(root)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes < needed_bytes:
            raise LocalIOError(
                f"{root}: {needed_bytes:,} bytes are needed for temporary files and {free_bytes:,} are free", hint=_HINT
            )
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=root, ignore_cleanup_errors=True)
    except OSError as error:
        raise LocalIOError(f"{root}: no temporary folder can be made: {error.strerror}", hint=_HINT) from error
    _in_use.add(folder.name)
    with folder as path:
        try:
            yield Path(path)
        finally:
            _in_use.discard(path)


def remove_all() -> None:
    """Remove the folders of a process that is about to end without unwinding. What cannot be removed stays."""
    for path in tuple(_in_use):
        shutil.rmtree(path, ignore_errors=True)
