"""What a fetch reads from: a published model whose bytes can be asked for in ranges.

`runtime/stores` has one module for each kind of place; `stores.open_origin` picks it. Every read is one attempt:
`fetch` asks again, for what is missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from mlimg.runtime.descriptor import OnBytes
from mlimg.runtime.errors import RemoteError
from mlimg.runtime.manifest import ModelFile, ModelManifest
from mlimg.runtime.proof import ImageProof
from mlimg.runtime.reference import ModelUri


class RangesIgnoredError(RemoteError):
    """A place answers with the whole file when it is asked for a part of it. It is then read in one stream."""


class RemoteFile(Protocol):
    """One file of a model that can be read from any offset, over several connections at once."""

    @property
    def file(self) -> ModelFile:
        """Its path, length and sha256: whoever reads it to a file checks them."""

    @property
    def executable(self) -> bool:
        """Whether the file is a program."""

    def read(self, offset: int, size_bytes: int) -> Iterator[bytes]:
        """The file's bytes from `offset` on, in order: exactly `size_bytes` of them. Safe in several threads.

        Raises RemoteTemporaryError when the connection breaks or stalls, RangesIgnoredError from a place that has no
        ranges (never for the whole file), RemoteError, CredentialsError, IntegrityError, Stopped.
        """


class RemoteBundle(Protocol):
    """Several small files that come in one stream, checked as a whole."""

    @property
    def name(self) -> str:
        """What it is called on disk while it is incomplete: a digest's hex digits."""

    @property
    def size_bytes(self) -> int:
        """Bytes that come over the network."""

    @property
    def files(self) -> tuple[ModelFile, ...] | None:
        """The files that should be in it, as far as lengths tell; None where only reading it does."""

    @property
    def has_manifest(self) -> bool:
        """Whether the model's manifest comes in it, so that unpacking it is what proves the manifest."""

    def is_whole(self, folder: Path, stop: Event) -> bool:
        """Whether the files below `folder`, with their modes, are the bundle (and its manifest the one that was read).

        It is held against the digest of the whole, so that this proves as much as unpacking it. Raises Stopped.
        """

    def unpack(self, folder: Path, on_bytes: OnBytes) -> None:
        """Write the files below `folder`, each checked. One attempt; raises as `RemoteFile.read`, IntegrityError."""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A published model: its manifest, and where each of its files comes from, once.

    `proof` is kept beside the version where the URI's digest is not that of the manifest itself.
    """

    manifest: ModelManifest
    manifest_bytes: bytes
    files: tuple[RemoteFile, ...]
    bundles: tuple[RemoteBundle, ...]
    proof: ImageProof | None = None


class Origin(Protocol):
    """A place that models are fetched from."""

    def resolve(self, uri: ModelUri) -> ModelUri:
        """Pin a URI to what it names now. Raises RemoteError where there is nothing, RemoteTemporaryError."""

    def open(self, uri: ModelUri) -> RemoteModel:
        """Read the manifest of a pinned model.

        Raises IntegrityError when it is not what the URI is pinned to, ModelError for what is no model, and what a
        read raises.
        """

    def close(self) -> None:
        """Close idle connections."""
