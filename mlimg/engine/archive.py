"""Image archives as `docker load` reads and `docker save` writes them, without `tarfile` touching payload bytes.

https://github.com/moby/docker-image-spec/blob/v1.3.1/v1.2.md#combined-image-json--filesystem-changeset-format
https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
"""

import hashlib
import json
import secrets
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from mlimg.append import Image
from mlimg.runtime.descriptor import (
    OCI_INDEX,
    OCI_MANIFEST,
    Blob,
    Descriptor,
    MemoryBlob,
    OnBytes,
    ignore_bytes,
)
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import ModelError

_BLOCK: Final = tarfile.BLOCKSIZE
_MAX_JSON_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive."""

    name: str
    blob: Blob
    counted: bool = False  # whether it is payload, of which somebody sees progress


class Archive:
    """A tar stream of known length, made while it is read.

    Iterating raises ModelError when a blob is not what its digest or size says.
    """

    def __init__(self, entries: Sequence[Entry], on_bytes: OnBytes = ignore_bytes) -> None:
        self._entries = tuple(entries)
        self._on_bytes = on_bytes

    def __len__(self) -> int:
        """The size in bytes: a request that has it is sent as it is, not in HTTP chunks."""
        return sum(_BLOCK + _padded(entry.blob.size_bytes) for entry in self._entries) + 2 * _BLOCK

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for entry in self._entries:
            yield _header(entry.name, entry.blob.size_bytes)
            yield from self._payload(entry)
            yield bytes(_padded(entry.blob.size_bytes) - entry.blob.size_bytes)
        yield bytes(2 * _BLOCK)

    def _payload(self, entry: Entry) -> Iterator[bytes | memoryview]:
        hasher, size_bytes = hashlib.sha256(), 0
        for chunk in entry.blob.chunks():
            hasher.update(chunk)
            size_bytes += len(chunk)
            if size_bytes > entry.blob.size_bytes:
                break  # the engine would take it for the next file's header
            yield chunk
            if entry.counted:
                self._on_bytes(len(chunk))
        digest = Digest("sha256:" + hasher.hexdigest())
        if size_bytes != entry.blob.size_bytes or entry.blob.digest not in {None, digest}:
            raise ModelError(
                "the model's files changed while they were sent to the engine",
                hint="run again when nothing writes to them",
            )


def graph_entries(image: Image, missing: Sequence[Blob]) -> list[Entry]:
    """What the graph driver takes: layers by the names of their diffIDs, those that it has left out."""
    config = MemoryBlob(image.config())
    listing = [
        {
            "Config": _blob_path(config.digest),
            "RepoTags": None,
            "Layers": [_blob_path(diff_id) for diff_id in image.diff_ids],
        }
    ]
    return [
        Entry("manifest.json", MemoryBlob(canonical_json(listing))),
        Entry(_blob_path(config.digest), config),
        *_payload_entries(missing),
    ]


def layout_entries(image: Image, manifest: bytes, missing: Sequence[Blob]) -> list[Entry]:
    """What the containerd store takes: an OCI layout, and `manifest.json` beside it as `docker save` writes both.

    containerd finds blobs by what they hold. It keeps what an archive that was cut has brought, by its name there, and
    lays behind that what comes under the same name, unseen. So layers have other names each time.
    https://github.com/containerd/containerd/blob/v1.7.24/images/archive/importer.go
    """
    config, content = MemoryBlob(image.config()), MemoryBlob(manifest)
    platform = {"os": image.os, "architecture": image.architecture} | (
        {"variant": image.variant} if image.variant else {}
    )
    root = Descriptor(OCI_MANIFEST, content.digest, content.size_bytes).to_json() | {"platform": platform}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]}
    layers = [layer.descriptor.digest for layer in image.layers if layer.descriptor]
    listing = [
        {"Config": _blob_path(config.digest), "RepoTags": None, "Layers": [_blob_path(digest) for digest in layers]}
    ]
    return [
        Entry("oci-layout", MemoryBlob(canonical_json({"imageLayoutVersion": "1.0.0"}))),
        Entry("index.json", MemoryBlob(canonical_json(index))),
        Entry("manifest.json", MemoryBlob(canonical_json(listing))),
        Entry(_blob_path(content.digest), content),
        Entry(_blob_path(config.digest), config),
        *_payload_entries(missing, suffix=f"-{secrets.token_hex(8)}"),
    ]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a `docker save` held: the sizes of its blobs, and those of its files that may be JSON."""

    sizes: Mapping[Digest, int]
    documents: Mapping[str, bytes]

    def document(self, name: str) -> Mapping[str, Any]:
        """A JSON object of the archive. Raises ValueError when it is not there or is none."""
        value = json.loads(self.documents.get(name, b"null"))
        if not isinstance(value, dict):
            raise ValueError(f"the saved image has no {name}")
        return value

    def blob(self, digest: Digest) -> Mapping[str, Any]:
        """A JSON object among the blobs. Raises ValueError when it is not there or is none."""
        return self.document(_blob_path(digest))


OnContent = Callable[[str, int, Iterator[bytes]], None]
"""Called with the name, the size and the bytes of a file of an archive; it need not read them all."""


def read_saved(parts: Iterable[bytes], on_content: OnContent | None = None) -> Saved:
    """Read a `docker save` to its end, keeping only what describes the image. Raises ValueError when it is cut.

    `on_content` gets every other file.
    """
    reader = _Reader(parts)
    sizes: dict[Digest, int] = {}
    documents: dict[str, bytes] = {}
    while any(block := reader.take(_BLOCK)):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        name = info.name.removeprefix("./")
        first = reader.take(min(info.size, _MAX_JSON_BYTES))
        rest = reader.pieces(info.size - len(first))
        is_document = first[:1] == b"{" and len(first) == info.size
        if on_content and info.isreg() and not is_document:
            on_content(name, info.size, chain([first], rest))
        for _ in rest:
            pass
        reader.skip(_padded(info.size) - info.size)
        if info.isreg() and name.startswith("blobs/sha256/"):
            sizes[Digest.parse("sha256:" + name.removeprefix("blobs/sha256/"))] = info.size
        if info.isreg() and is_document:
            documents[name] = first
    return Saved(sizes, documents)


class _Reader:
    """Takes exact amounts from parts that come as they like."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._part = memoryview(b"")

    def take(self, size_bytes: int) -> bytes:
        taken = bytearray()
        while len(taken) < size_bytes:
            taken += self._next(size_bytes - len(taken))
        return bytes(taken)

    def pieces(self, size_bytes: int) -> Iterator[bytes]:
        while size_bytes:
            piece = self._next(size_bytes)
            size_bytes -= len(piece)
            yield bytes(piece)

    def skip(self, size_bytes: int) -> None:
        while size_bytes:
            size_bytes -= len(self._next(size_bytes))

    def _next(self, at_most: int) -> memoryview:
        while not self._part:
            part = next(self._parts, None)
            if part is None:
                raise ValueError("the saved image is cut short")
            self._part = memoryview(part)
        taken, self._part = self._part[:at_most], self._part[at_most:]
        return taken


def _payload_entries(layers: Sequence[Blob], suffix: str = "") -> Iterator[Entry]:
    for layer in layers:
        if layer.digest is None:
            raise ValueError("a layer goes into an archive before its digest is known")
        yield Entry(_blob_path(layer.digest) + suffix, layer, counted=True)


def _blob_path(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def _header(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info.tobuf(tarfile.GNU_FORMAT)  # which has no limit of 8 GiB


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK) * _BLOCK
