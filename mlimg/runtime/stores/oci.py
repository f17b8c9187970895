"""Models in a registry: ``REPOSITORY/<name>:<version>`` is a mountable image of the model alone.

``REPOSITORY/<name>:<version>-modelpack`` is the CNCF's artifact over the same layers.
"""

from collections.abc import Container, Sequence
from contextlib import closing
from dataclasses import replace

from mlimg.runtime.descriptor import OCI_MANIFEST, Descriptor, MemoryBlob, OnBytes, ignore_bytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, ModelError, RemoteError
from mlimg.runtime.oci import Access, BlobMissingError, Journal, Registry, push_blobs, send_and_name
from mlimg.runtime.oci.image import parse_manifest
from mlimg.runtime.oci.upload import OnNote, PushedBlob, ignore_note
from mlimg.runtime.reference import PACK_SUFFIX, ImageReference, ModelUri
from mlimg.runtime.stores import ModelPack, ModelPayload, PublishedModel, StoredModel, different
from mlimg.runtime.unpack import KnownModel, peek_manifest


class OciStore:
    """A repository prefix of a registry."""

    def __init__(
        self,
        prefix: ImageReference,
        access: Access,
        *,
        mount_from: Sequence[str] = (),
        journal: Journal | None = None,
        on_note: OnNote = ignore_note,
    ) -> None:
        self._prefix = prefix
        self._access = access
        self._mount_from = tuple(mount_from)
        self._journal = journal
        self._on_note = on_note

    def reference(self, name: str, version: str) -> ImageReference:
        """The image of a version."""
        repository = f"{self._prefix.repository}/{name}"
        return replace(self._prefix, repository=repository).with_tag(version)

    def published(self, name: str, version: str) -> PublishedModel | None:
        """The version as it is published, None where there is none; only its manifest is read."""
        registry = Registry(self._access)
        try:
            return self._published(registry, self.reference(name, version))
        finally:
            registry.close()

    def publish(self, payload: ModelPayload, *, on_bytes: OnBytes = ignore_bytes) -> StoredModel:
        """Publish a model: layers, config, manifest by digest, its tag, and then the artifact over the same layers."""
        reference = self.reference(payload.manifest.name, payload.manifest.version)
        registry = Registry(self._access)
        try:
            pack_is_there = self._pack_is_there(registry, payload, reference)
            stored, blobs = self._publish_image(registry, payload, reference, on_bytes)
            if payload.model_pack and not pack_is_there:
                # Registries have no compare-and-swap on tags. Of all who write the first tag, find nobody else's model
                # under the second, write that, and find theirs still under the first, at most one is left: the
                # splitter of Lamport's "A fast mutual exclusion algorithm" (1987).
                warning, more = self._publish_pack(registry, payload, payload.model_pack, reference, stored)
                stored = replace(stored, warning=warning)
                blobs += more
                self._existing(registry, payload, reference)
        finally:
            registry.close()
        moved_bytes = sum(blob.sent_bytes for blob in blobs)
        reused_bytes = sum(blob.size_bytes for blob in blobs if blob.how != "sent")
        return replace(stored, moved_bytes=moved_bytes, reused_bytes=stored.reused_bytes or reused_bytes)

    def _publish_image(
        self, registry: Registry, payload: ModelPayload, reference: ImageReference, on_bytes: OnBytes
    ) -> tuple[StoredModel, list[PushedBlob]]:
        if existing := self._existing(registry, payload, reference):
            return existing, []
        data = payload.image_manifest
        pinned = reference.with_digest(Digest.of(data))

        def name() -> StoredModel:
            registry.push_manifest(replace(pinned, tag=None), data, OCI_MANIFEST)
            # Looking again just before narrows what a race can do, and the tag is read back after it was written.
            if existing := self._existing(registry, payload, reference):
                return existing
            registry.push_manifest(reference, data, OCI_MANIFEST)
            return StoredModel(ModelUri.of_image(pinned), 0, 0, existed=False)

        config = MemoryBlob(payload.image_config)

        def send(*, anew: Container[Digest]) -> list[PushedBlob]:
            blobs = self._push_layers(payload, reference, ignore_bytes if anew else on_bytes, anew=anew)
            return [*blobs, registry.push_blob(reference, config, anew=config.digest in anew)]

        return send_and_name(send, name, on_note=self._on_note)

    def _push_layers(
        self, payload: ModelPayload, reference: ImageReference, on_bytes: OnBytes, *, anew: Container[Digest]
    ) -> list[PushedBlob]:
        return push_blobs(
            self._access,
            reference,
            payload.layers,
            mount_from=self._mount_from,
            on_bytes=on_bytes,
            on_note=self._on_note,
            journal=self._journal,
            anew=anew,
        )

    def _pack_is_there(self, registry: Registry, payload: ModelPayload, reference: ImageReference) -> bool:
        """Whether the artifact is published. Raises ConflictError when its tag stands for anything else."""
        if payload.model_pack is None:
            return False
        tag = pack_reference(reference)
        found = registry.resolve(tag)
        if found is None or found.digest == Digest.of(payload.model_pack.manifest):
            return found is not None
        pinned = tag.with_digest(found.digest)
        layers = parse_manifest(registry.manifest(pinned)[1], str(tag)).layers
        known = _known_model(registry, pinned, layers, str(tag))
        if known.manifest_bytes != payload.manifest.to_bytes():
            raise different(known.manifest, str(tag))
        return True  # whoever made it cut the layers otherwise

    def _publish_pack(
        self,
        registry: Registry,
        payload: ModelPayload,
        pack: ModelPack,
        reference: ImageReference,
        image: StoredModel,
    ) -> tuple[str, list[PushedBlob]]:
        """Publish the artifact; gives a warning where the registry takes images and nothing else."""
        config = MemoryBlob(pack.config)

        def send(*, anew: Container[Digest]) -> list[PushedBlob]:
            # An image that was there may have its layers cut otherwise.
            lacks_layers = image.existed or bool(anew)
            blobs = self._push_layers(payload, reference, ignore_bytes, anew=anew) if lacks_layers else []
            return [*blobs, registry.push_blob(reference, config, anew=config.digest in anew)]

        def name() -> str:
            if self._pack_is_there(registry, payload, reference):
                return ""
            try:
                registry.push_manifest(pack_reference(reference), pack.manifest, OCI_MANIFEST)
            except BlobMissingError:
                raise
            except RemoteError as error:
                return f"{pack_reference(reference)} is not published: {error.message}"
            return ""

        return send_and_name(send, name, on_note=self._on_note)

    def _existing(self, registry: Registry, payload: ModelPayload, reference: ImageReference) -> StoredModel | None:
        """The model where it is published, None where nothing is. Raises ConflictError where anything else is."""
        found = registry.resolve(reference)
        if found is None:
            return None
        pinned = reference.with_digest(found.digest)
        # Equal manifests name equal blobs; another one may still be of this model, with its layers cut otherwise.
        if found.digest != Digest.of(payload.image_manifest):
            known = _known_model(registry, pinned, registry.image(pinned).layers, str(reference))
            if known.manifest_bytes != payload.manifest.to_bytes():
                raise different(known.manifest, str(reference))
        return StoredModel(ModelUri.of_image(pinned), 0, payload.manifest.size_bytes, existed=True)

    def _published(self, registry: Registry, reference: ImageReference) -> PublishedModel | None:
        found = registry.resolve(reference)
        if found is None:
            return None
        pinned = reference.with_digest(found.digest)
        known = _known_model(registry, pinned, registry.image(pinned).layers, str(reference))
        return PublishedModel(known.manifest, Digest.of(known.manifest_bytes), ModelUri.of_image(pinned))


def pack_reference(reference: ImageReference) -> ImageReference:
    """The ModelPack artifact that lies beside a model image."""
    return reference.with_tag(f"{reference.tag}{PACK_SUFFIX}")


def _known_model(registry: Registry, pinned: ImageReference, layers: Sequence[Descriptor], where: str) -> KnownModel:
    """The model in an image or artifact. Raises ConflictError where there is none."""
    try:
        if not layers:
            raise ModelError("it has no layers")
        with closing(registry.open_blob(pinned, layers[-1], only_start=True)) as pieces:
            return peek_manifest(pieces)
    except ModelError as error:
        raise ConflictError(f"{where} is there and is not a model: {error.message}") from error
