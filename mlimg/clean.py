"""What earlier runs left behind and nobody needs: in the engine, among temporary files, beside the spec."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlimg.engine.base import BASE_REPOSITORY, PRIVATE_REGISTRY
from mlimg.hashing.cache import CACHE_NAME
from mlimg.record import RECORD_NAME, local_store, record_folder
from mlimg.runtime.errors import LocalIOError
from mlimg.runtime.reference import SERVER_INPUTS_LABEL
from mlimg.runtime.stores.directory import REPLACED

if TYPE_CHECKING:
    from mlimg.engine.docker import Engine, EngineImage

# Names that a build gives for its own duration. One that lasts was killed.
TEMPORARY_NAMES: Final = f"{PRIVATE_REGISTRY}/build"
# A server keeps this name when its version has gone to another: builds find it by what went into it.
_KEY_NAME: Final = re.compile(r":key-[0-9a-f]{12}$")
SCRATCH_PREFIX: Final = "mlimg-"
OLD_SECONDS: Final = 24 * 3600.0  # no run of ours lasts that long


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing to remove. Images share layers, so an image's size is the most that removing it may free."""

    what: str
    size_bytes: int
    remove: Callable[[], None]


def engine_leftovers(engine: "Engine") -> Iterator[Leftover]:
    """Images of ours that nobody can name any more, and names that only mlimg gave. Raises EngineError."""
    for image in engine.images_by_name(f"{TEMPORARY_NAMES}:*"):
        yield from _names(engine, image, "build", lambda name: name.startswith(f"{TEMPORARY_NAMES}:"))
    for image in engine.images_by_name(f"{BASE_REPOSITORY}:*"):
        if all(name.startswith(BASE_REPOSITORY) for name in (*image.repo_tags, *image.repo_digests)):
            yield from _names(engine, image, "former base", lambda _: True)
    for image in engine.images_by_label(SERVER_INPUTS_LABEL):
        if image.repo_tags and all(_KEY_NAME.search(name) for name in image.repo_tags):
            yield from _names(engine, image, "former server", lambda _: True)
    for image in engine.images_by_label(SERVER_INPUTS_LABEL, untagged_only=True):
        yield Leftover(f"image {image.id[:19]}", image.size_bytes, partial(engine.remove, image.id))


def _names(engine: "Engine", image: "EngineImage", what: str, is_ours: Callable[[str], bool]) -> Iterator[Leftover]:
    """Names to take away; the engine removes an image with its last one."""
    for name in filter(is_ours, image.repo_tags):
        yield Leftover(f"{what} {name}", image.size_bytes, partial(engine.untag, name))


def replaced_models(spec_folder: Path) -> Iterator[Leftover]:
    """Versions in the local store that newer builds replaced. A container that still runs may have one open."""
    for path in sorted(local_store(spec_folder).glob(f"*/{REPLACED}/*")):
        yield Leftover(f"replaced model {path}", _size(path), partial(_remove, path))


def scratch(spec_folder: Path, temporary: Path) -> Iterator[Leftover]:
    """What runs that are gone left half-written: records here, old folders of ours in `temporary`."""
    local = record_folder(spec_folder)
    written = (path for name in (RECORD_NAME, CACHE_NAME) for path in local.glob(f".{name}.*"))
    found = [path for path in written if not _is_alive(path.suffix[1:])]
    now = time.time()
    for path in temporary.glob(f"{SCRATCH_PREFIX}*"):
        try:
            status = path.lstat()
        except OSError:
            continue  # gone meanwhile
        if status.st_uid == os.getuid() and now - status.st_mtime > OLD_SECONDS and not path.is_symlink():
            found.append(path)
    for path in sorted(found):
        yield Leftover(f"scratch {path}", _size(path), partial(_remove, path))


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise LocalIOError(f"{error.filename or path}: {error.strerror}") from error
