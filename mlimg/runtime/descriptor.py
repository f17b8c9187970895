"""OCI descriptors and media types: how manifests point at blobs.

https://github.com/opencontainers/image-spec/blob/v1.1.0/descriptor.md
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self

from mlimg.runtime.digest import Digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
# A Docker layer media type and the OCI name for the same bytes.
OCI_TWIN = {
    "application/vnd.docker.image.rootfs.diff.tar": OCI_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": OCI_LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": OCI_LAYER_ZSTD,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_INDEX: OCI_INDEX,
}

OnBytes = Callable[[int], None]
"""Called with the number of bytes that moved since the last call."""


def ignore_bytes(_size_bytes: int) -> None:
    """Take no notice of progress."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a manifest names it."""

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a descriptor from a manifest somebody sent. Raises ValueError."""
        if not isinstance(value, dict):
            raise ValueError("a descriptor is not an object")
        media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise ValueError("a descriptor has no mediaType or no digest")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**53:
            raise ValueError(f"a descriptor's size is {size!r}")
        annotations = value.get("annotations")
        if annotations is None:
            annotations = {}
        if not isinstance(annotations, dict) or not all(
            isinstance(k, str) and isinstance(v, str) for k, v in annotations.items()
        ):
            raise ValueError("a descriptor's annotations are not texts")
        return cls(media_type, Digest.parse(digest), size, annotations)

    def to_json(self) -> dict[str, Any]:
        """The descriptor as it stands in a manifest."""
        value: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest.text,
            "size": self.size_bytes,
        }
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        return value


CHUNKS_HELD: Final = 8  # so far may the hashing of chunks be behind whoever reads and sends them


class Blob(Protocol):
    """Bytes to be sent, read anew at each `chunks()`.

    `digest` may be None until the last chunk was taken: the blob is hashed while it is read. `chunks()` may raise
    ModelError when the files behind it changed.
    """

    @property
    def size_bytes(self) -> int:
        """Length in bytes."""

    @property
    def digest(self) -> Digest | None:
        """The content's sha256 where it is known; after a reading to the end it is."""

    @property
    def resume_key(self) -> str | None:
        """Names the content before its digest is known: equal keys, equal bytes, in every process of this machine.

        None where nothing tells so much; then an upload that was cut is not resumed by another process.
        """

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes in order; a chunk is valid until `CHUNKS_HELD` more were asked for, so nobody may collect them."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that lies somewhere else, read when it is sent: `read` raises what that place raises."""

    descriptor: Descriptor
    read: Callable[[], Iterator[bytes]]

    @property
    def size_bytes(self) -> int:
        """Length in bytes."""
        return self.descriptor.size_bytes

    @property
    def digest(self) -> Digest:
        """The content's sha256, as its manifest says it."""
        return self.descriptor.digest

    @property
    def resume_key(self) -> None:
        """None: the digest is known."""
        return

    def chunks(self) -> Iterator[bytes]:
        """The bytes."""
        return self.read()


@dataclass(frozen=True, slots=True)
class MemoryBlob:
    """A small blob that is in memory: a config, a manifest."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        """Length in bytes."""
        return len(self.data)

    @property
    def digest(self) -> Digest:
        """The content's sha256."""
        return Digest.of(self.data)

    @property
    def resume_key(self) -> None:
        """None: it is sent whole."""
        return

    def chunks(self) -> Iterator[bytes]:
        """All bytes, once."""
        yield self.data
