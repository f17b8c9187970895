"""Private folders for what a command needs on disk for a while: with room in them, and gone afterwards.

Whoever uses one holds a lock on it, which the kernel drops with the process. What a killed run has left is removed by
the next run that makes a folder.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mlimg.runtime.errors import LocalIOError

_HINT = "set TMPDIR to a folder with room"
_PREFIXES: Final = ("mlimg-ca-", "mlimg-build-")  # of folders that only this module makes, and locks
_YOUNG_SECONDS: Final = 60.0  # a folder is made first and locked a moment later
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
    with folder as path, _locked(Path(path)):
        _sweep(root)
        try:
            yield Path(path)
        finally:
            _in_use.discard(path)


def remove_all() -> None:
    """Remove the folders of a process that is about to end without unwinding. What cannot be removed stays."""
    for path in tuple(_in_use):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; False where somebody else does, or where the file system has none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        held = False
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        yield held
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove the folders that nobody holds any more. What cannot be removed stays."""
    now = time.time()
    for path in [path for prefix in _PREFIXES for path in root.glob(f"{prefix}*")]:
        with contextlib.suppress(OSError):
            status = path.lstat()
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if ours and now - status.st_mtime > _YOUNG_SECONDS:
                with _locked(path) as free:
                    if free:
                        shutil.rmtree(path, ignore_errors=True)
