"""An OCI image layout: a folder that holds whole images, to be carried to a registry that cannot be reached from here.

https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md. Blobs come first and the index last, each in
one step, so a layout is what it was or what it is to be; a run that was killed is simply run again.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mlimg.runtime.descriptor import DOCKER_INDEX, OCI_INDEX, Descriptor, OnBytes, ignore_bytes
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest, canonical_json
from mlimg.runtime.errors import IntegrityError, LimitError, LocalIOError, UsageError, printable
from mlimg.runtime.locks import hold
from mlimg.runtime.oci.image import MANIFEST_TYPES, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES
from mlimg.runtime.reference import ImageReference

REF_NAME: Final = "org.opencontainers.image.ref.name"
FULL_NAME: Final = "io.containerd.image.name"  # what containerd and Docker call the image when they load the layout
_MARK: Final = "oci-layout"
_INDEX: Final = "index.json"
_LOCK: Final = ".mlimg.lock"
_PARTS: Final = ".mlimg-parts"  # what is being written; nobody reads there
_LOCK_SECONDS: Final = 30.0
_ROOM_TO_SPARE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """A manifest that the index lists, and the name it is listed under ("" where it has none)."""

    name: str
    descriptor: Descriptor
    extra: Mapping[str, Any] = field(default_factory=dict)  # what the index says of it besides: platform, artifactType

    def to_json(self) -> dict[str, Any]:
        """The entry as it stands in the index."""
        return {**self.extra, **self.descriptor.to_json()}


@dataclass(frozen=True, slots=True)
class LayoutBlob:
    """A blob of a layout, a `Blob`; what is read is checked before its last byte is given."""

    path: Path
    descriptor: Descriptor

    @property
    def size_bytes(self) -> int:
        """Length in bytes."""
        return self.descriptor.size_bytes

    @property
    def digest(self) -> Digest:
        """The content's sha256, as the manifest says it."""
        return self.descriptor.digest

    @property
    def resume_key(self) -> str:
        """The digest: equal content everywhere."""
        return self.digest.text

    def chunks(self) -> Iterator[bytes]:
        """The bytes. Raises IntegrityError, before the last chunk, when they are not those of the digest."""
        sha256, size_bytes, held = hashlib.sha256(), 0, b""
        for chunk in _read(self.path):
            sha256.update(chunk)
            size_bytes += len(chunk)
            if held:
                yield held
            held = chunk
        if size_bytes != self.size_bytes or sha256.hexdigest() != self.digest.hex:
            raise IntegrityError(
                f"{self.path} is not what its digest says",
                hint="build the layout again: `mlimg build --output` into a new folder",
            )
        if held:
            yield held


class Layout:
    """A folder with images. `open` reads one that is there; `writing` makes one, or adds to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> "Layout":
        """The layout in `folder`. Raises UsageError where there is none."""
        layout = cls(folder)
        if not layout._is_marked():
            raise UsageError(f"{folder} is no OCI layout", hint="`mlimg build --output oci:DIR` makes one")
        return layout

    # Reading

    def entries(self) -> tuple[LayoutEntry, ...]:
        """What the index lists, in its order. Raises IntegrityError, LocalIOError."""
        value = _parse(self._small(self.folder / _INDEX, MAX_MANIFEST_BYTES), self.folder / _INDEX)
        listed = value.get("manifests")
        try:
            if not isinstance(listed, list):
                raise ValueError("it lists no manifests")
            return tuple(_entry(item) for item in listed)
        except ValueError as error:
            raise IntegrityError(f"{self.folder / _INDEX}: {printable(str(error))[:200]}") from error

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or config, checked. Raises IntegrityError, LimitError, LocalIOError."""
        path = self._path(descriptor.digest)
        if not path.exists():
            raise IntegrityError(
                f"{self.folder} lacks {descriptor.digest}", hint="build the layout again: what is missing is added"
            )
        cap = MAX_MANIFEST_BYTES if descriptor.media_type in MANIFEST_TYPES else MAX_CONFIG_BYTES
        data = self._small(path, cap)
        if len(data) != descriptor.size_bytes or Digest.of(data) != descriptor.digest:
            raise IntegrityError(f"{path} is not what its digest says")
        return data

    def open_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob's bytes, unchecked: for whoever looks at the beginning only. Raises LocalIOError."""
        return _read(self._path(descriptor.digest))

    def blob(self, descriptor: Descriptor) -> LayoutBlob:
        """A blob to be sent. Raises IntegrityError when it is not there in full length."""
        if not self.has(descriptor):
            raise IntegrityError(
                f"{self.folder} lacks {descriptor.digest}, or has it in another length",
                hint="build the layout again: what is missing is added",
            )
        return LayoutBlob(self._path(descriptor.digest), descriptor)

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there in full length: a blob gets its name only when it is complete."""
        return self.size_of(descriptor.digest) == descriptor.size_bytes

    def size_of(self, digest: Digest) -> int | None:
        """The length of a blob, None where it is not there."""
        with contextlib.suppress(OSError):
            return self._path(digest).stat().st_size
        return None

    # Writing

    @contextlib.contextmanager
    def writing(self) -> Iterator["LayoutWriter"]:
        """Make the folder a layout and keep it to oneself; what a killed run left half is removed.

        Raises UsageError when the folder holds something else, BusyError when another process writes into it,
        LocalIOError.
        """
        lock = self.folder / _LOCK
        with _local_io(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._is_marked() and any(path.name not in {_LOCK, _PARTS} for path in self.folder.iterdir()):
                raise UsageError(
                    f"{self.folder} is neither empty nor an OCI layout", hint="name a new folder, or one made before"
                )
        with hold(lock, str(self.folder), wait_seconds=_LOCK_SECONDS):
            try:
                with _local_io(self.folder):
                    writer = LayoutWriter(self)
                yield writer
            finally:
                with contextlib.suppress(OSError):
                    _clear(self.folder / _PARTS)
                    (self.folder / _PARTS).rmdir()
                with contextlib.suppress(OSError):
                    lock.unlink()

    def _is_marked(self) -> bool:
        try:
            value = json.loads((self.folder / _MARK).read_bytes()[:4096])
            return isinstance(value, dict) and str(value.get("imageLayoutVersion", "")).startswith("1.")
        except (OSError, ValueError, RecursionError):
            return False

    def _path(self, digest: Digest) -> Path:
        return self.folder / "blobs" / "sha256" / digest.hex

    def _small(self, path: Path, cap: int) -> bytes:
        with _local_io(path), path.open("rb") as file:
            data = file.read(cap + 1)
        if len(data) > cap:
            raise LimitError(f"{path} is larger than {cap} bytes")
        return data


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
        self._replace(self._folder / _MARK, canonical_json({"imageLayoutVersion": "1.0.0"}))
        self._blobs.mkdir(parents=True, exist_ok=True)
        if not (self._folder / _INDEX).exists():
            self._replace(self._folder / _INDEX, _index(()))

    def check_room(self, blobs: Iterable[Descriptor], *, more_bytes: int = 0) -> None:
        """Raise LocalIOError unless the disk takes those of `blobs` that are not here yet, and `more_bytes`."""
        missing = {blob.digest: blob.size_bytes for blob in blobs if not self.layout.has(blob)}
        needed_bytes = sum(missing.values()) + more_bytes
        with _local_io(self._folder):
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
        with _local_io(self._folder):
            (self._blobs / digest.hex).unlink(missing_ok=True)

    def list_entries(self, entries: Sequence[LayoutEntry]) -> None:
        """Let the index name `entries`, last of all; an entry takes the place of the one that had its name."""
        names = {entry.name for entry in entries}
        kept = [entry for entry in self.layout.entries() if not entry.name or entry.name not in names]
        with _local_io(self._folder):
            _sync(self._blobs)
            self._replace(self._folder / _INDEX, _index([*kept, *entries]))

    def _replace(self, path: Path, data: bytes) -> None:
        with self._part() as part:
            part.write([data], ignore_bytes)
            part.keep(path)
            _sync(path.parent)

    @contextlib.contextmanager
    def _part(self) -> Iterator["_Part"]:
        with _local_io(self._folder):
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
            with _local_io(self._path.parent.parent):
                left = memoryview(chunk)
                while left:
                    left = left[self._file.write(left) :]
            size_bytes += len(chunk)
            on_bytes(len(chunk))
        return Digest(f"sha256:{sha256.hexdigest()}"), size_bytes

    def keep(self, path: Path) -> None:
        with _local_io(path.parent):
            os.fchmod(self._file.fileno(), 0o644)
            os.fsync(self._file.fileno())
            self._path.rename(path)

    def close(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def entry(reference: ImageReference, descriptor: Descriptor, **extra: Any) -> LayoutEntry:
    """An entry under the name of an image, as mlimg and other readers look for it."""
    full = f"{reference.registry}/{reference.repository}:{reference.tag}"
    named = {**descriptor.annotations, REF_NAME: str(reference), FULL_NAME: full}
    described = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size_bytes, named)
    return LayoutEntry(str(reference), described, extra)


def is_index(descriptor: Descriptor) -> bool:
    """Whether a manifest lists others."""
    return descriptor.media_type in {OCI_INDEX, DOCKER_INDEX}


def _entry(item: object) -> LayoutEntry:
    descriptor = Descriptor.parse(item)
    assert isinstance(item, dict)  # noqa: S101 (Descriptor.parse refuses everything else)
    extra = {key: item[key] for key in ("platform", "artifactType") if key in item}
    return LayoutEntry(descriptor.annotations.get(REF_NAME, ""), descriptor, extra)


def _index(entries: Sequence[LayoutEntry]) -> bytes:
    return canonical_json(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json() for entry in entries]}
    )


def _parse(data: bytes, path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} is not a JSON object")
    return value


def _read(path: Path) -> Iterator[bytes]:
    with _local_io(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(READ_SIZE_BYTES):
            yield chunk


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@contextlib.contextmanager
def _local_io(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalIOError(f"{where}: {error.strerror}") from error
