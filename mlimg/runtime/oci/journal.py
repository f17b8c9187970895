"""What was being uploaded when a process died: the next one asks the registry, and goes on where that stands.

One small file per registry, repository and blob. Nothing in it is believed: the registry's own offset counts, and the
digest of what it was sent decides at the end.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from mlimg.runtime.errors import LocalIOError
from mlimg.runtime.locks import try_lock

_LONGEST_SECONDS: Final = 7 * 24 * 3600  # registries sweep sessions after about a week
_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """An upload that was begun."""

    location: str = field(repr=False)  # where the session goes on; it may hold a token
    offset_bytes: int  # so many bytes, at most, the registry can have been sent


class Slot:
    """The place of one upload, held by one process. A slot that cannot be written only means that nothing resumes."""

    def __init__(self, path: Path, names: tuple[str, str, str]) -> None:
        self._path = path
        self._names = names

    def read(self) -> Entry | None:
        """What was noted last, None for nothing, or nothing that can be used."""
        try:
            if not 0 <= time.time() - self._path.stat().st_mtime + 60 < _LONGEST_SECONDS:
                return None
            with self._path.open("rb") as file:
                value = json.loads(file.read(_MAX_BYTES))
            registry, repository, key = value["registry"], value["repository"], value["key"]
            location, offset = value["location"], value["offset"]
        except (OSError, ValueError, RecursionError, LookupError, TypeError):
            return None
        sound = isinstance(location, str) and type(offset) is int and offset >= 0
        return Entry(location, offset) if sound and (registry, repository, key) == self._names else None

    def write(self, entry: Entry) -> None:
        """Note an upload, whole or not at all."""
        registry, repository, key = self._names
        value = {
            "registry": registry,
            "repository": repository,
            "key": key,
            "location": entry.location,
            "offset": entry.offset_bytes,
        }
        with contextlib.suppress(OSError):
            with NamedTemporaryFile("w", dir=self._path.parent, prefix=".", delete=False, encoding="utf-8") as file:
                json.dump(value, file)  # mode 0600
            Path(file.name).replace(self._path)

    def forget(self) -> None:
        """Note that there is nothing to go on with."""
        with contextlib.suppress(OSError):
            self._path.unlink()


class Journal:
    """Uploads that were begun, in a folder of their own that other runs share. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def hold(self, registry: str, repository: str, key: str) -> Iterator[Slot | None]:
        """The slot of one upload; None while another process has it, or where the folder cannot be used."""
        name = hashlib.sha256("\n".join((registry, repository, key)).encode()).hexdigest()[:32]
        lock = self._folder / f"{name}.lock"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()
            descriptor = try_lock(lock)
        except (OSError, LocalIOError):
            descriptor = None
        if descriptor is None:
            yield None
            return
        try:
            yield Slot(self._folder / f"{name}.json", (registry, repository, key))
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what is too old to be taken up, and what writers that were killed have left."""
        oldest = time.time() - _LONGEST_SECONDS
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError, LocalIOError):
                if path.stat().st_mtime >= oldest:
                    continue
                held = try_lock(path) if path.suffix == ".lock" else None
                if held is not None or path.suffix != ".lock":
                    path.unlink()
                if held is not None:
                    os.close(held)
