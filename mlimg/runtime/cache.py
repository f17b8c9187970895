"""The versions of models that a folder keeps: a cache, whether one server uses it or all replicas of a node.

A version lies in ``FOLDER/.mlimg/<digest>/``, complete, and what proves it beside it (`proof`). Whoever serves it holds
the lock ``<digest>.lock`` together with the others who do; the time of that file is when it was last used. A version
that shares files with those that are here takes them over: cloned where the file system can share blocks, else
hard-linked, else copied, hashed in any case.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Final

from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import IntegrityError, LocalIOError, Stopped
from mlimg.runtime.locks import try_lock
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile
from mlimg.runtime.proof import remove_proof
from mlimg.runtime.verify import read_manifest
from mlimg.runtime.version_folder import clone, remove

log = logging.getLogger(__name__)
VERSIONS: Final = ".mlimg"
_VERSION: Final = re.compile(r"[0-9a-f]{64}")
_POLL_SECONDS: Final = 0.05


def version_folders(place: Path) -> list[Path]:
    """Every version that `place` keeps, complete or not."""
    try:
        return sorted(path for path in (place / VERSIONS).iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())
    except OSError:
        return []


def use(folder: Path, stop: Event | None = None) -> int | None:
    """Say that a version is in use: a descriptor that says so until it is closed, by the end of the process at last.

    To be said before anything of it is read, or written: whoever is just removing it is waited for, unless `stop` is
    set, which raises Stopped. It is passed on to a program that takes the place of this process. None where that
    cannot be said, on a volume that is read-only and was filled by somebody else: nothing is removed from there either.
    """
    lock, stop = _lock_of(folder), stop or Event()
    try:
        while (descriptor := try_lock(lock, shared=True)) is None:
            if stop.wait(_POLL_SECONDS):
                raise Stopped
    except LocalIOError:
        return None
    os.set_inheritable(descriptor, True)
    with contextlib.suppress(OSError):
        os.utime(lock)
    return descriptor


def copies(places: Sequence[Path], wanted: Iterable[ModelFile]) -> dict[Digest, list[Path]]:
    """Where files of that content should be, by the manifests of the versions that are here. Nothing is hashed."""
    found: dict[Digest, list[Path]] = {file.sha256: [] for file in wanted}
    for place in dict.fromkeys(places):
        for folder in version_folders(place):
            with contextlib.suppress(IntegrityError, LocalIOError):
                known = read_manifest(folder)
                for file in known[0].files if known else ():
                    if file.sha256 in found:
                        found[file.sha256].append(folder / file.path)
    return found


def take_over(source: Path, target: Path, file: ModelFile, *, executable: bool | None, stop: Event) -> bool:
    """Bring the file at `source` to `target` if it has the content of `file`; whether it had.

    With None as `executable` it stays what it is. Raises LocalIOError when `target` cannot be written, Stopped.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb", buffering=0) as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size_bytes:
            return False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            is_program = bool(found.st_mode & 0o111)
            executable = is_program if executable is None else executable
            same_mode = is_program == executable
            digest = _cloned(opened, target, stop) or (same_mode and _linked(source, opened, target, stop))
            digest = digest or _copied(opened, target, stop)
            if digest != file.sha256:
                target.unlink()
                return False
            if not same_mode or found.st_ino != target.stat().st_ino:
                target.chmod(0o755 if executable else 0o644)
        except OSError as error:
            with contextlib.suppress(OSError):
                target.unlink()
            raise LocalIOError(f"cannot write {target}: {error.strerror}") from error
    return True


def evict(place: Path, needed_bytes: int, limit_bytes: int, *, keep: str) -> None:
    """Make room for `needed_bytes` more below `limit_bytes`: versions go that were longest not used.

    Those in use stay, and the version `keep`, so that more may lie here than the limit.
    """
    here = [folder for folder in version_folders(place) if folder.name != keep]
    for folder in sorted(here, key=_last_used):
        if _size_bytes(version_folders(place)) + needed_bytes <= limit_bytes:
            return
        try:
            remove_unused(folder)
        except LocalIOError as error:
            log.warning("%s stays: %s", folder, error)


def remove_unused(folder: Path) -> None:
    """Remove a version, unless somebody uses it. Raises LocalIOError."""
    lock = _lock_of(folder)
    if (descriptor := try_lock(lock)) is None:
        return
    try:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)  # first: half a version is none
        remove(folder)
        remove_proof(folder)
        lock.unlink(missing_ok=True)
    except OSError as error:
        raise LocalIOError(f"cannot remove {folder}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    log.info("removed %s: nobody uses it, and its room is needed", folder)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _last_used(folder: Path) -> float:
    for path in (_lock_of(folder), folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _size_bytes(folders: Sequence[Path]) -> int:
    """The bytes of all files, those with several names once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    found = (Path(parent) / name).lstat()
                    sizes[(found.st_dev, found.st_ino)] = found.st_size
    return sum(sizes.values())


def _cloned(source: io.FileIO, target: Path, stop: Event) -> Digest | None:
    """The digest of a clone, None where the file system makes none."""
    with target.open("xb") as output:
        if not clone(source, output):
            target.unlink()
            return None
        os.fsync(output.fileno())
    with target.open("rb", buffering=0) as cloned:
        return _digest(_pieces(cloned, stop))


def _linked(source: Path, opened: io.FileIO, target: Path, stop: Event) -> Digest | None:
    """The digest of a second name for the file, None where it cannot have one."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or another user's file
        return None
    if not os.path.samestat(os.fstat(opened.fileno()), target.lstat()):
        target.unlink()
        return None
    return _digest(_pieces(opened, stop))


def _copied(source: io.FileIO, target: Path, stop: Event) -> Digest:
    source.seek(0)
    with target.open("xb") as output:

        def written() -> Iterator[bytes]:
            for piece in _pieces(source, stop):
                output.write(piece)
                yield piece

        digest = _digest(written())
        output.flush()
        os.fsync(output.fileno())
    return digest


def _pieces(opened: io.FileIO, stop: Event) -> Iterator[bytes]:
    while piece := opened.read(READ_SIZE_BYTES):
        if stop.is_set():
            raise Stopped
        yield piece


def _digest(pieces: Iterable[bytes]) -> Digest:
    sha256 = hashlib.sha256()
    for piece in pieces:
        sha256.update(piece)
    return Digest("sha256:" + sha256.hexdigest())
