"""A folder is held against its `mlimg.manifest` before anybody parses a byte of the model."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Final, Literal

from mlimg.runtime.digest import READ_SIZE_BYTES
from mlimg.runtime.errors import IntegrityError, LocalIOError, ModelError, Stopped, printable
from mlimg.runtime.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, ModelFile, ModelManifest

Depth = Literal["digests", "sizes", "nothing"]
"""What of the files is compared: their sha256, only their sizes, or nothing at all."""

_THREADS: Final = 4


def read_manifest(folder: Path) -> tuple[ModelManifest, bytes] | None:
    """The manifest of a model's folder, None where there is none. Raises IntegrityError, LocalIOError."""
    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        return ModelManifest.parse(data), data
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LocalIOError(f"cannot read {folder / MANIFEST_NAME}: {error.strerror}") from error
    except ValueError as error:
        raise IntegrityError(f"{folder / MANIFEST_NAME}: {printable(str(error))[:300]}") from error


def verify_folder(
    folder: Path,
    manifest: ModelManifest,
    depth: Depth,
    on_bytes: Callable[[int], None] = lambda _size: None,
    stop: Event | None = None,
) -> None:
    """Compare a folder with its manifest.

    Raises ModelError for a file that is missing, IntegrityError for one that is altered or that nobody named,
    LocalIOError, and Stopped. `on_bytes` is called from several threads.
    """
    if depth == "nothing":
        return
    stop = stop or Event()
    named = {file.path for file in manifest.files}
    for path in _files(folder):
        if path not in named:
            raise IntegrityError(f"{folder / path} is not in {MANIFEST_NAME}", hint="take it out of the model's folder")
    for file in manifest.files:
        _check_size(folder, file)
    if depth == "digests":
        failed = Event()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as threads:
            try:
                for _ in threads.map(lambda file: _check_digest(folder, file, on_bytes, stop, failed), manifest.files):
                    pass
            finally:
                failed.set()  # the other threads need not read on


def _files(folder: Path) -> Iterator[PurePosixPath]:
    """Every file, hidden ones apart: volumes bring theirs (``..data``, ``.claim``), and the manifest itself."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "lost+found"]
        below = PurePosixPath(Path(parent).relative_to(folder))
        for name in names:
            if not name.startswith(".") and below / name != PurePosixPath(MANIFEST_NAME):
                yield below / name


def _check_size(folder: Path, file: ModelFile) -> None:
    path = folder / file.path
    try:
        found = path.stat()
        inside = path.resolve().is_relative_to(folder.resolve())
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{path} is missing", hint="the model is incomplete: copy or fetch it again") from None
    except OSError as error:
        raise LocalIOError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode) or not inside:
        raise IntegrityError(f"{path} is not a plain file of the model's folder")
    if found.st_size != file.size_bytes:
        raise IntegrityError(f"{path} has {found.st_size} bytes, its manifest says {file.size_bytes}")


def _check_digest(folder: Path, file: ModelFile, on_bytes: Callable[[int], None], stop: Event, failed: Event) -> None:
    sha256 = hashlib.sha256()
    try:
        with (folder / file.path).open("rb", buffering=0) as opened:
            while (piece := opened.read(READ_SIZE_BYTES)) and not failed.is_set():
                if stop.is_set():
                    raise Stopped
                sha256.update(piece)
                on_bytes(len(piece))
    except OSError as error:
        raise LocalIOError(f"cannot read {folder / file.path}: {error.strerror}") from error
    if sha256.hexdigest() != file.sha256.hex and not failed.is_set():
        raise IntegrityError(f"{folder / file.path} was altered: its content is not what {MANIFEST_NAME} says")
