"""An OCI image layout: a folder that holds whole images, to be carried to a registry that cannot be reached from here.

https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md. `layout_writer` makes them.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from mlimg.runtime.descriptor import Descriptor, StoredBlob
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import IntegrityError, LimitError, LocalIOError, UsageError, printable
from mlimg.runtime.oci.image import MANIFEST_TYPES, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, parse_object
from mlimg.runtime.reference import ImageReference

REF_NAME: Final = "org.opencontainers.image.ref.name"
FULL_NAME: Final = "io.containerd.image.name"  # what containerd and Docker call the image when they load the layout
MARK: Final = "oci-layout"
INDEX: Final = "index.json"


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """A manifest that the index lists, and the name it is listed under ("" where it has none)."""

    name: str
    descriptor: Descriptor
    extra: Mapping[str, Any] = field(default_factory=dict)  # what the index says of it besides: platform, artifactType

    def to_json(self) -> dict[str, Any]:
        """The entry as it stands in the index."""
        return {**self.extra, **self.descriptor.to_json()}


class Layout:
    """A folder with images. `open` finds one that is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> "Layout":
        """The layout in `folder`. Raises UsageError where there is none."""
        layout = cls(folder)
        if not layout.is_marked():
            raise UsageError(f"{folder} is no OCI layout", hint="`mlimg build --output oci:DIR` makes one")
        return layout

    def entries(self) -> tuple[LayoutEntry, ...]:
        """What the index lists, in its order. Raises IntegrityError, LocalIOError."""
        value = parse_object(self._small(self.folder / INDEX, MAX_MANIFEST_BYTES), str(self.folder / INDEX))
        listed = value.get("manifests")
        try:
            if not isinstance(listed, list):
                raise ValueError("it lists no manifests")
            return tuple(_entry(item) for item in listed)
        except ValueError as error:
            raise IntegrityError(f"{self.folder / INDEX}: {printable(str(error))[:200]}") from error

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

    def blob(self, descriptor: Descriptor) -> StoredBlob:
        """A blob to be sent, checked while it is read. Raises IntegrityError when it is not there in full length."""
        if not self.has(descriptor):
            raise IntegrityError(
                f"{self.folder} lacks {descriptor.digest}, or has it in another length",
                hint="build the layout again: what is missing is added",
            )
        return StoredBlob(descriptor, partial(_checked, self._path(descriptor.digest), descriptor))

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there in full length: a blob gets its name only when it is complete."""
        return self.size_of(descriptor.digest) == descriptor.size_bytes

    def size_of(self, digest: Digest) -> int | None:
        """The length of a blob, None where it is not there."""
        with contextlib.suppress(OSError):
            return self._path(digest).stat().st_size
        return None

    def is_marked(self) -> bool:
        """Whether the folder says that it is a layout."""
        try:
            value = json.loads((self.folder / MARK).read_bytes()[:4096])
            return isinstance(value, dict) and str(value.get("imageLayoutVersion", "")).startswith("1.")
        except (OSError, ValueError, RecursionError):
            return False

    def _path(self, digest: Digest) -> Path:
        return self.folder / "blobs" / "sha256" / digest.hex

    def _small(self, path: Path, cap: int) -> bytes:
        with local_io(path), path.open("rb") as file:
            data = file.read(cap + 1)
        if len(data) > cap:
            raise LimitError(f"{path} is larger than {cap} bytes")
        return data


def entry(reference: ImageReference, descriptor: Descriptor, **extra: Any) -> LayoutEntry:
    """An entry under the name of an image, as mlimg and other readers look for it."""
    full = f"{reference.registry}/{reference.repository}:{reference.tag}"
    named = {**descriptor.annotations, REF_NAME: str(reference), FULL_NAME: full}
    described = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size_bytes, named)
    return LayoutEntry(str(reference), described, extra)


def _entry(item: object) -> LayoutEntry:
    descriptor = Descriptor.parse(item)
    assert isinstance(item, dict)  # noqa: S101 (Descriptor.parse refuses everything else)
    extra = {key: item[key] for key in ("platform", "artifactType") if key in item}
    return LayoutEntry(descriptor.annotations.get(REF_NAME, ""), descriptor, extra)


def _read(path: Path) -> Iterator[bytes]:
    with local_io(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(READ_SIZE_BYTES):
            yield chunk


def _checked(path: Path, descriptor: Descriptor) -> Iterator[bytes]:
    """A blob's bytes. Raises IntegrityError, before the last chunk, when they are not those of the digest."""
    sha256, size_bytes, held = hashlib.sha256(), 0, b""
    for chunk in _read(path):
        sha256.update(chunk)
        size_bytes += len(chunk)
        if held:
            yield held
        held = chunk
    if size_bytes != descriptor.size_bytes or sha256.hexdigest() != descriptor.digest.hex:
        raise IntegrityError(
            f"{path} is not what its digest says",
            hint="build the layout again: `mlimg build --output` into a new folder",
        )
    if held:
        yield held


@contextlib.contextmanager
def local_io(where: Path) -> Iterator[None]:
    """Let an OSError inside be a LocalIOError outside."""
    try:
        yield
    except OSError as error:
        raise LocalIOError(f"{where}: {error.strerror}") from error
