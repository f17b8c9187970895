"""Locks between processes that share a folder. The kernel drops them with their holder, so none is ever stale."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from mlimg.runtime.errors import BusyError, LocalIOError

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def hold(path: Path, what: str, *, wait_seconds: float | None = None, stop: Event | None = None) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever has it; None waits for ever.

    Raises BusyError when it is not free in time or `stop` is set, LocalIOError.
    """
    stop, waited = stop or Event(), 0.0
    while (descriptor := try_lock(path)) is None:
        if stop.wait(_POLL_SECONDS) or (wait_seconds is not None and waited >= wait_seconds):
            raise BusyError(f"another process works on {what}", hint=f"it holds {path}; wait for it to end")
        waited += _POLL_SECONDS
    try:
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Take the lock file now: an open descriptor that holds it, None when somebody else does. Raises LocalIOError.

    A shared lock keeps out whoever wants it alone; it can be taken on a volume that is read-only, if the file is there.
    """
    while True:
        try:
            descriptor = _open(path, shared=shared)
        except OSError as error:
            raise LocalIOError(f"cannot open the lock {path}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # another user of the group made it, or the volume is read-only
            os.fchmod(descriptor, 0o664)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise LocalIOError(f"{path.parent} cannot hold locks: {error.strerror}") from error
        # Who sweeps the folder may have removed the file between the two calls: then this locks nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _open(path: Path, *, shared: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    except OSError:
        if not shared:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
