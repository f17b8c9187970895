"""Where models are published: one module per kind of place."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import BinaryIO, Protocol

from mlimg.runtime.descriptor import Blob, OnBytes, ignore_bytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, SpecError, printable
from mlimg.runtime.manifest import ModelManifest
from mlimg.runtime.oci import Access, Journal
from mlimg.runtime.oci.upload import OnNote, ignore_note
from mlimg.runtime.origin import Origin
from mlimg.runtime.reference import OBJECT_SCHEMES, ImageReference, ModelUri, ObjectPlace


@dataclass(frozen=True, slots=True)
class ModelPack:
    """The two files that make a ModelPack artifact of a model image's layers."""

    config: bytes
    manifest: bytes


@dataclass(frozen=True, slots=True)
class ModelPayload:
    """A packed model, with all that any kind of store needs of it.

    `layers`, `image_config` and `image_manifest` make the model image, which registries get beside the ModelPack
    artifact; `open` gives single files, which whoever reads them checks against the manifest.
    """

    manifest: ModelManifest
    layers: tuple[Blob, ...]
    image_config: bytes
    image_manifest: bytes
    open: Callable[[PurePosixPath], BinaryIO]
    model_pack: ModelPack | None = None


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A version that a store has, complete. Models are compared by `manifest_digest`, that of `mlimg.manifest`."""

    manifest: ModelManifest
    manifest_digest: Digest
    uri: ModelUri  # pinned


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What came of publishing. `moved_bytes` were copied or sent, `reused_bytes` were there or shared by the disk.

    `warning` says what of it a store refuses for good, without which the model is served all the same.
    """

    uri: ModelUri  # pinned: an oci URI by the image's manifest, a folder by its `mlimg.manifest`
    moved_bytes: int
    reused_bytes: int
    existed: bool
    warning: str = ""


class Store(Protocol):
    """A place that keeps versions of models, each for good."""

    def published(self, name: str, version: str) -> PublishedModel | None:
        """The version as it is published, None where there is none; only its manifest is read.

        Raises ConflictError where something else has its place, IntegrityError, LocalIOError, and what a registry
        raises.
        """

    def publish(self, payload: ModelPayload, *, on_bytes: OnBytes = ignore_bytes) -> StoredModel:
        """Publish a model, its mark of completeness last. The same content is a success that moves nothing.

        Raises ConflictError when the version has other content, BusyError, ModelError and IntegrityError when the
        files changed since they were packed, LocalIOError, and what a registry raises.
        """


def open_store(
    text: str,
    access: Access,
    *,
    replace: bool = False,
    force: bool = False,
    mount_from: tuple[str, ...] = (),
    journal: Journal | None = None,
    on_note: OnNote = ignore_note,
) -> Store:
    """The store that `text` names: ``oci://registry/repository``, ``s3://bucket/prefix`` (gs, az), an absolute folder.

    `replace` lets a folder's versions be replaced (the default local store); `force` takes over what another model
    claimed and never finished, which registries do not know; `mount_from` are repositories that may
    have the layers already; `journal` lets uploads to a registry go on that another process did not finish. Raises
    SpecError.
    """
    from mlimg.runtime.stores.directory import DirectoryStore  # noqa: PLC0415 (they need the words above)
    from mlimg.runtime.stores.oci import OciStore  # noqa: PLC0415

    if text.startswith("/"):
        return DirectoryStore(Path(text), replace=replace, force=force)
    shown = printable(text)[:300]
    scheme, _, place = text.partition("://")
    if scheme in OBJECT_SCHEMES:
        from mlimg.runtime.stores.objects import ObjectStore  # noqa: PLC0415

        try:
            return ObjectStore(ObjectPlace.parse(text), access, force=force)
        except ValueError as error:
            raise SpecError(f"`{shown}` is no store: {printable(str(error))[:300]}") from error
    if scheme != "oci":
        raise SpecError(f"`{shown}` is no store: write oci://registry/repository, s3://bucket/prefix or a folder")
    try:
        reference = ImageReference.parse(place)
    except ValueError as error:
        raise SpecError(f"`{shown}` is no store: {printable(str(error))[:300]}") from error
    if reference.tag or reference.digest:
        raise SpecError(f"`{shown}` names one version; a store is a repository without tag and digest")
    return OciStore(reference, access, mount_from=mount_from, journal=journal, on_note=on_note)


def open_origin(uri: ModelUri, access: Access, stop: Event) -> Origin:
    """What a model with such a URI is fetched from; reading ends when `stop` is set. Raises SpecError."""
    if uri.scheme == "oci":
        from mlimg.runtime.stores.oci_origin import OciOrigin  # noqa: PLC0415 (each kind brings its own imports)

        return OciOrigin(access, stop)
    if uri.scheme in OBJECT_SCHEMES:
        from mlimg.runtime.stores.objects import ObjectOrigin  # noqa: PLC0415

        return ObjectOrigin(access, stop)
    raise SpecError(f"a model is not fetched from {printable(uri.scheme)[:20]}://")


def is_executable(source: BinaryIO) -> bool:
    """Whether an open file of a model is a program; False for what is no file of this machine."""
    try:
        return bool(os.fstat(source.fileno()).st_mode & 0o100)
    except OSError:  # io.UnsupportedOperation among them
        return False


def different(existing: ModelManifest, where: str) -> ConflictError:
    """The error for a version that is published with other content."""
    return ConflictError(
        f"{where} is published with other content: {existing.name} {existing.version}, {existing.digest}",
        hint="raise model.version: what is published never changes",
    )
