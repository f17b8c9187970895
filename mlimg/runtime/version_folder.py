"""A model version as a folder that is either complete or not there, on a volume that several processes may share."""

import contextlib
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, LocalIOError
from mlimg.runtime.locks import try_lock
from mlimg.runtime.manifest import MANIFEST_NAME, ModelManifest

_ROOM_TO_SPARE_BYTES: Final = 16 * 1024 * 1024
_FICLONE: Final = 0x40049409  # https://man7.org/linux/man-pages/man2/ioctl_ficlone.2.html


def make_folder(path: Path) -> Path:
    """Make a folder and its parents. Raises LocalIOError.

    It is open to the group, as containers run under any user of group 0 and may share a volume.
    """
    try:
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o2775)
    except OSError as error:
        raise LocalIOError(f"cannot make {path}: {error.strerror}") from error
    return path


def first_writable(places: Sequence[Path]) -> Path:
    """The first folder that can be written; it is made if need be. Raises LocalIOError where there is none."""
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
    raise LocalIOError(
        f"no folder can be written for the model: tried {', '.join(map(str, places))}",
        hint=f"mount a volume at {places[0]} that user {os.getuid()} can write",
    )


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, if it is there. Raises LocalIOError."""
    try:
        if path.exists():
            shutil.rmtree(path)
    except OSError as error:
        raise LocalIOError(f"cannot remove {path}: {error.strerror}") from error


def check_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise LocalIOError unless the disk of `folder` takes `needed_bytes` more."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise LocalIOError(f"cannot tell how much room {folder} has: {error.strerror}") from error
    free_bytes = found.f_bavail * found.f_frsize
    if needed_bytes + _ROOM_TO_SPARE_BYTES > free_bytes:
        raise LocalIOError(
            f"{what} needs {needed_bytes:,} bytes and {folder} has {free_bytes:,} free",
            hint="give the volume more room, or set MLIMG_CACHE_DIR to a larger one",
        )


def sweep(scratch: Path, keep: str) -> None:
    """Remove what processes that are gone left in `scratch`; `keep` is the version whose lock the caller holds."""
    for lock in scratch.glob("*.lock"):
        if lock.stem == keep or (descriptor := try_lock(lock)) is None:
            continue
        with contextlib.suppress(FileNotFoundError):
            remove(scratch / lock.stem)
            lock.unlink()
        os.close(descriptor)


def is_kept(folder: Path, manifest: ModelManifest) -> bool:
    """Whether all that an earlier try left in a bundle's folder is what `manifest` says. Raises LocalIOError."""
    named = {file.path: file for file in manifest.files}
    try:
        found = [path for path in folder.rglob("*") if not path.is_dir()]
        for path in found:
            file = named.get(_below(path, folder))
            if file is None or path.is_symlink() or Digest.of_file(path) != file.sha256:
                return False
    except OSError as error:
        raise LocalIOError(f"cannot read {folder}: {error.strerror}") from error
    return folder.is_dir()


def move_into(tree: Path, path: PurePosixPath, source: Path) -> None:
    """Give a file its place in a version that is being put together. Raises IntegrityError where there is one."""
    target = tree / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise IntegrityError(f"`{path}` comes twice")
        source.rename(target)
    except OSError as error:
        raise LocalIOError(f"cannot complete {tree}: {error.strerror}") from error


def files_below(folder: Path) -> list[PurePosixPath]:
    """The paths of all files in a folder, below it."""
    return [_below(path, folder) for path in folder.rglob("*") if not path.is_dir()]


def install(manifest: ModelManifest, manifest_bytes: bytes, tree: Path, folder: Path) -> None:
    """Rename a tree with a model's files to `folder`, and write the marker.

    Raises IntegrityError when it does not hold all the model's files, LocalIOError.
    """
    try:
        for file in manifest.files:
            if not (tree / file.path).is_file():
                raise IntegrityError(f"`{file.path}` is named by {MANIFEST_NAME} and comes with nothing")
        sync_folders(tree)
        remove(folder)  # an altered or half-removed one
        tree.rename(folder)
        sync_folder(folder.parent)
        write_marker(folder, manifest_bytes)
    except OSError as error:
        raise LocalIOError(f"cannot complete {folder}: {error.strerror}") from error


def write_marker(folder: Path, manifest_bytes: bytes) -> None:
    """Write `mlimg.manifest`, whole or not at all. Raises OSError."""
    write_whole(folder / MANIFEST_NAME, manifest_bytes)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file that everybody may read, whole or not at all. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    part.rename(path)
    sync_folder(path.parent)


def clone(source: BinaryIO | io.FileIO, output: BinaryIO | io.FileIO) -> bool:
    """Let an empty file share the blocks of another; False where the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(output.fileno(), _FICLONE, source.fileno())
    except (OSError, io.UnsupportedOperation):
        return False
    return True


def sync_folders(tree: Path) -> None:
    """Make all folders of a version last, and readable for any user of a container, as in an image. Raises OSError."""
    for parent, _, _ in os.walk(tree, topdown=False):
        Path(parent).chmod(0o755)
        sync_folder(Path(parent))


def sync_folder(path: Path) -> None:
    """Make a folder's entries last. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _below(path: Path, folder: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(folder))
