"""A model in a local file or folder.

Only plain files travel: what else lies in a folder (links, devices, pipes) is refused rather than guessed at. A file
is stamped when it is listed, and every later open and every read to its end compares the stamp, so a model that is
still being written is noticed. Owners, times, extended attributes and mode bits other than "executable" stay behind.
"""

import errno
import io
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Self

from mlimg.runtime.errors import LimitError, LocalIOError, ModelError, printable
from mlimg.runtime.manifest import check_collisions, model_path
from mlimg.sources import Inventory, SourceFile
from mlimg.sources.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# More than that is a data set. It also bounds the memory of every step: a listed file costs about a kilobyte.
MAX_FILES: Final = 50_000
# The largest single files that model hubs hold are near 500 GB. What one registry takes as a layer is often less, and
# its own affair.
MAX_FILE_BYTES: Final = 512 * 1024**3
# A file may change once more within one tick of its file system's clock and keep its time. Times in whole seconds come
# from a clock that ticks in seconds (FAT: two), others from the kernel's, which ticks every 10 ms or faster.
_COARSE_GRAIN_NS: Final = 2_000_000_000
_FINE_GRAIN_NS: Final = 100_000_000
_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells a file from another and from its own later self, without reading it.

    The time of the last change of the inode is the kernel's own: `touch` and `rsync --times` cannot set it.
    """

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a listed file lies on this machine, links followed."""

    file: str
    stamp: _Stamp


class _StampedFile(io.FileIO):
    """An open file that is still the listed one. Reading to its end raises ModelError if it changed meanwhile."""

    def __init__(self, place: _Place) -> None:
        self._place = place
        # Without O_NONBLOCK, a pipe put in the file's place would hang the open.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with _local_errors(place.file, changed=(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)):
            super().__init__(os.open(place.file, flags))
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill `buffer` as far as one read goes. Raises ModelError at the end of a changed file, LocalIOError."""
        with _local_errors(self._place.file):
            size = super().readinto(buffer) or 0
        if size == 0:
            self._check()
        return size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes, else all. Raises ModelError at the end of a changed file, LocalIOError."""
        if size is None or size < 0:
            return self.readall()
        with _local_errors(self._place.file):
            data = super().read(size) or b""
        if not data:
            self._check()
        return data

    def readall(self) -> bytes:
        """Read what is left. Raises ModelError if the file changed, LocalIOError."""
        with _local_errors(self._place.file):
            data = super().readall() or b""
        self._check()
        return data

    def _check(self) -> None:
        with _local_errors(self._place.file):
            now = os.fstat(self.fileno())
        if not stat.S_ISREG(now.st_mode) or _Stamp.of(now) != self._place.stamp:
            raise _changed(self._place.file)


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The files as they were when listed. It keeps nothing open."""

    files: Inventory
    places: Mapping[PurePosixPath, _Place]

    def inventory(self) -> Inventory:
        """The files, sorted by path."""
        return self.files

    def open(self, path: PurePosixPath) -> io.FileIO:
        """Open one listed file, unbuffered. Raises ModelError when it is gone or changed, LocalIOError."""
        return _StampedFile(self.places[path])


def open_source(
    path: Path, *, follow_links: bool = False, allowed: tuple[Path, ...] = (), selection: Selection = EVERYTHING
) -> LocalSource:
    """List the model at `path`: a file is a model of one file under its own name, a folder what `selection` takes.

    With `follow_links`, links that end at a plain file beneath `path` or an `allowed` folder stand for that file;
    `path` itself may then be a link to a folder there. Folders without files are left out. Raises ModelError for what
    cannot be a model, LocalIOError for what cannot be read, LimitError for what is too large to be one.
    """
    # A link as `path` leads where it likes, so it does not vouch for the place it leads to.
    inside = allowed if path.is_symlink() else (*allowed, path)
    door = _Door(follow_links, tuple(os.path.realpath(folder) for folder in inside))
    try:
        file, status = door.enter(os.fspath(path))
    except FileNotFoundError:
        raise ModelError(f"`{printable(str(path))}` does not exist", hint=_nearest(path)) from None
    places: dict[PurePosixPath, _Place] = {}
    files: list[SourceFile] = []
    if stat.S_ISDIR(status.st_mode):
        found = _walk(file, door, selection)
    else:
        found = iter([(path.name, file, status)] if selection.takes(path.name) else [])
    now_ns = time.time_ns()
    for name, real, entry in found:
        at = _model_path(name)
        executable = bool(entry.st_mode & stat.S_IXUSR)
        files.append(SourceFile(at, entry.st_size, executable, _fingerprint(entry, now_ns)))
        places[at] = _Place(real, _Stamp.of(entry))
    selection.check_found()
    if not files:
        raise ModelError(f"`{printable(str(path))}` holds no files", hint="model.source names the trained model")
    try:
        check_collisions(places)
    except ValueError as error:
        raise ModelError(f"model.source: {error}") from None
    return LocalSource(Inventory(tuple(sorted(files, key=lambda file: str(file.path)))), places)


@dataclass(frozen=True, slots=True)
class _Door:
    """Decides what may enter a model."""

    follow_links: bool
    allowed: tuple[str, ...]

    def enter(self, entry: str) -> tuple[str, os.stat_result]:
        """Where `entry` really lies and what it is: a plain file or a folder.

        Raises FileNotFoundError, ModelError, LocalIOError and LimitError.
        """
        status = _lstat(entry)
        real = entry
        if stat.S_ISLNK(status.st_mode):
            real = self._follow(entry)
            status = _lstat(real)
        if stat.S_ISDIR(status.st_mode):
            if os.path.basename(entry) == ".git":  # noqa: PTH119 (a million paths stay texts)
                # A clone's history doubles the model, and its config may hold a token.
                raise ModelError(
                    f"`{printable(entry)}` is the history of a clone, not part of a model",
                    hint="let model.source name a folder of the model's files alone",
                )
            return real, status
        if not stat.S_ISREG(status.st_mode) or status.st_dev in _kernel_devices():
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a file of the kernel's")
            raise ModelError(f"`{printable(entry)}` is {kind}, not a plain file", hint="a model is plain files only")
        if status.st_size > MAX_FILE_BYTES:
            raise LimitError(
                f"`{printable(entry)}` has {status.st_size} bytes; a file of a model has at most {MAX_FILE_BYTES}",
                hint="save the model in shards",
            )
        return real, status

    def _follow(self, link: str) -> str:
        shown = printable(link)
        if not self.follow_links:
            raise ModelError(f"`{shown}` is a link", hint="`model.follow_links: true` takes the file it points to")
        try:
            real = os.path.realpath(link, strict=True)
        except OSError as error:
            raise ModelError(f"`{shown}` is a link that leads nowhere: {error.strerror}") from None
        if not any(os.path.commonpath((real, folder)) == folder for folder in self.allowed):
            raise ModelError(
                f"`{shown}` is a link to `{printable(real)}`, outside the project",
                hint=f"--allow-path {printable(os.path.dirname(real))}",  # noqa: PTH120 (a million paths stay texts)
            )
        return real


def _walk(root: str, door: _Door, selection: Selection) -> Iterator[tuple[str, str, os.stat_result]]:
    """Name, place and status of each file below `root`, in an order that does not depend on the file system's.

    What is not selected is not looked at: it may be a link, a pipe or the history of a clone.
    """
    room = MAX_FILES
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        with _local_errors(folder, changed=(errno.ENOENT, errno.ENOTDIR)), os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, room + 1))
        room -= len(names)
        if room < 0:
            raise LimitError(
                f"`{printable(root)}` holds more than {MAX_FILES} files and folders", hint="pack data in archives"
            )
        for name, is_folder in names:
            at = f"{prefix}{name}"
            if selection.leaves_out(at) if is_folder else not selection.takes(at):
                continue
            _model_path(at)
            entry = f"{folder}/{name}"
            try:
                real, status = door.enter(entry)
            except FileNotFoundError:
                raise _changed(entry) from None
            if not stat.S_ISDIR(status.st_mode):
                yield at, real, status
            elif real == entry:
                folders.append((f"{at}/", entry))
            else:
                raise ModelError(f"`{printable(entry)}` is a link to a folder", hint="only links to files are followed")


def _fingerprint(status: os.stat_result, now_ns: int) -> str | None:
    fine = status.st_mtime_ns % 1_000_000_000 and status.st_ctime_ns % 1_000_000_000
    grain_ns = _FINE_GRAIN_NS if fine else _COARSE_GRAIN_NS
    if max(status.st_mtime_ns, status.st_ctime_ns) > now_ns - grain_ns:
        return None
    return ":".join(map(str, astuple(_Stamp.of(status))))


def _model_path(text: str) -> PurePosixPath:
    try:
        return model_path(text)
    except ValueError as error:
        raise ModelError(f"model.source: {error}", hint="rename the file") from None


def _lstat(path: str) -> os.stat_result:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise _unreadable(path, error) from error


@cache
def _kernel_devices() -> frozenset[int]:
    """File systems whose files are questions to the kernel: endless, or gone once read."""
    return frozenset(Path(mount).stat().st_dev for mount in ("/proc", "/sys") if Path(mount).exists())


def _nearest(path: Path) -> str:
    try:
        names = [entry.name for entry in path.absolute().parent.iterdir()]
    except OSError:
        return "model.source is relative to the folder of the spec"
    near = get_close_matches(path.name, names, n=1)
    return f"did you mean `{printable(near[0])}`?" if near else "model.source is relative to the folder of the spec"


def _changed(file: str) -> ModelError:
    return ModelError(
        f"`{printable(file)}` changed while it was read", hint="run again when whatever writes the model has finished"
    )


@contextmanager
def _local_errors(file: str, changed: tuple[int, ...] = ()) -> Iterator[None]:
    """Make the system's errors ours; those of `changed` mean that another process took the file away."""
    try:
        yield
    except OSError as error:
        if error.errno in changed:
            raise _changed(file) from error
        raise _unreadable(file, error) from error


def _unreadable(file: str, error: OSError) -> LocalIOError:
    return LocalIOError(f"cannot read `{printable(file)}`: {error.strerror}")
