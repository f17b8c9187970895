"""Writing an OCI image layout: blobs come first and the index last, each in one step.

So a layout is what it was or what it is to be; a run that was killed is simply run again.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from mlimg.layout import INDEX, MARK, Layout, LayoutEntry, local_io
from mlimg.runtime.descriptor import OCI_INDEX, Descriptor, OnBytes, ignore_bytes
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import IntegrityError, LocalIOError, UsageError
from mlimg.runtime.locks import hold
from mlimg.runtime.version_folder import sync_folder

_LOCK: Final = ".mlimg.lock"
_PARTS: Final = ".mlimg-parts"  # what is being written; nobody reads there
_LOCK_SECONDS: Final = 30.0
_ROOM_TO_SPARE_BYTES: Final = 16 * 1024 * 1024


@contextlib.contextmanager
def writing(layout: Layout) -> Iterator["LayoutWriter"]:
    """Make the folder of `layout` one and keep it to oneself; what a killed run left half is removed.

    Raises UsageError when the folder holds something else, BusyError when another process writes into it,
    LocalIOError.
    """
    lock = layout.folder / _LOCK
    with local_io(layout.folder):
        layout.folder.mkdir(parents=True, exist_ok=True)
        # Names first: a writer that begins beside this one marks the folder before it puts anything else there.
        has_others = any(path.name not in {_LOCK, _PARTS} for path in layout.folder.iterdir())
        if has_others and not layout.is_marked():
            raise UsageError(
                f"{layout.folder} is neither empty nor an OCI layout", hint="name a new folder, or one made before"
            )
    with hold(lock, str(layout.folder), wait_seconds=_LOCK_SECONDS):
        try:
            with local_io(layout.folder):
                writer = LayoutWriter(layout)
            yield writer
        finally:
            with contextlib.suppress(OSError):
                _clear(layout.folder / _PARTS)
                (layout.folder / _PARTS).rmdir()
            with contextlib.suppress(OSError):
                lock.unlink()


class LayoutWriter:
    """A layout that this process alone writes to. Every method raises LocalIOError."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._folder = layout.folder
        self._blobs = layout.folder / "blobs" / "sha256"
        self._parts = layout.folder / _PARTS
        self._parts.mkdir(exist_ok=True)
        _clear(self._parts)
        # The mark first: without it, a folder with something in it is somebody else's.
        self._replace(self._folder / MARK, canonical_json({"imageLayoutVersion": "1.0.0"}))
        self._blobs.mkdir(parents=True, exist_ok=True)
        if not (self._folder / INDEX).exists():
            self._replace(self._folder / INDEX, _index(()))

    def check_room(self, blobs: Iterable[Descriptor], *, more_bytes: int = 0) -> None:
        """Raise LocalIOError unless the disk takes those of `blobs` that are not here yet, and `more_bytes`."""
        missing = {blob.digest: blob.size_bytes for blob in blobs if not self.layout.has(blob)}
        needed_bytes = sum(missing.values()) + more_bytes
        with local_io(self._folder):
            disk = os.statvfs(self._folder)
        free_bytes = disk.f_bavail * disk.f_frsize
        if needed_bytes + _ROOM_TO_SPARE_BYTES > free_bytes:
            raise LocalIOError(
                f"the layout needs {needed_bytes:,} bytes more and {self._folder} has {free_bytes:,} free",
                hint="name a folder on a larger disk",
            )

    def add(
        self,
        descriptor: Descriptor,
        chunks: Iterable[bytes | memoryview],
        *,
        on_bytes: OnBytes = ignore_bytes,
    ) -> int:
        """Write a blob that is not here yet, hashed on its way; gives the bytes written.

        Raises IntegrityError when the bytes are others than `descriptor` says, and what reading `chunks` raises.
        """
        if self.layout.has(descriptor):
            on_bytes(descriptor.size_bytes)
            return 0
        with self._part() as part:
            digest, size_bytes = part.write(chunks, on_bytes)
            if (digest, size_bytes) != (descriptor.digest, descriptor.size_bytes):
                raise IntegrityError(f"{descriptor.digest} came with other content: {size_bytes} bytes, {digest}")
            part.keep(self._blobs / digest.hex)
        return size_bytes

    def add_unknown(self, chunks: Iterable[bytes | memoryview]) -> tuple[Digest, bool]:
        """Write a blob whose digest only its bytes tell; gives it, and whether the blob was not here before."""
        with self._part() as part:
            digest, size_bytes = part.write(chunks, ignore_bytes)
            is_new = self.layout.size_of(digest) != size_bytes
            if is_new:
                part.keep(self._blobs / digest.hex)
        return digest, is_new

    def add_document(self, data: bytes) -> None:
        """Write a manifest or config."""
        self.add(Descriptor("", Digest.of(data), len(data)), [data])

    def discard(self, digest: Digest) -> None:
        """Take a blob away again that turned out to be no part of an image."""
        with local_io(self._folder):
            (self._blobs / digest.hex).unlink(missing_ok=True)

    def list_entries(self, entries: Sequence[LayoutEntry]) -> None:
        """Let the index name `entries`, last of all; an entry takes the place of the one that had its name."""
        names = {entry.name for entry in entries}
        kept = [entry for entry in self.layout.entries() if not entry.name or entry.name not in names]
        with local_io(self._folder):
            sync_folder(self._blobs)
            self._replace(self._folder / INDEX, _index([*kept, *entries]))

    def _replace(self, path: Path, data: bytes) -> None:
        with self._part() as part:
            part.write([data], ignore_bytes)
            part.keep(path)
            sync_folder(path.parent)

    @contextlib.contextmanager
    def _part(self) -> Iterator["_Part"]:
        with local_io(self._folder):
            handle, name = tempfile.mkstemp(dir=self._parts)
        part = _Part(handle, Path(name))
        try:
            yield part
        finally:
            part.close()


class _Part:
    """A file on its way to its name."""

    def __init__(self, handle: int, path: Path) -> None:
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._path = path

    def write(self, chunks: Iterable[bytes | memoryview], on_bytes: OnBytes) -> tuple[Digest, int]:
        sha256, size_bytes = hashlib.sha256(), 0
        for chunk in chunks:
            sha256.update(chunk)
            with local_io(self._path.parent.parent):
                left = memoryview(chunk)
                while left:
                    left = left[self._file.write(left) :]
            size_bytes += len(chunk)
            on_bytes(len(chunk))
        return Digest(f"sha256:{sha256.hexdigest()}"), size_bytes

    def keep(self, path: Path) -> None:
        with local_io(path.parent):
            os.fchmod(self._file.fileno(), 0o644)
            os.fsync(self._file.fileno())
            self._path.rename(path)

    def close(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _index(entries: Sequence[LayoutEntry]) -> bytes:
    return canonical_json(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json() for entry in entries]}
    )


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
