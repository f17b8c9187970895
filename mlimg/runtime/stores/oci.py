"""Models in a registry: ``REPOSITORY/<name>:<version>`` is a mountable image of the model alone."""

from collections.abc import Sequence
from dataclasses import replace

from mlimg.runtime.descriptor import OCI_MANIFEST, MemoryBlob, OnBytes, ignore_bytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, ModelError
from mlimg.runtime.oci import Access, Registry, push_blobs
from mlimg.runtime.reference import ImageReference, ModelUri
from mlimg.runtime.stores import ModelPayload, PublishedModel, StoredModel, different
from mlimg.runtime.unpack import peek_manifest


class OciStore:
    """A repository prefix of a registry."""

    def __init__(self, prefix: ImageReference, access: Access, *, mount_from: Sequence[str] = ()) -> None:
        self._prefix = prefix
        self._access = access
        self._mount_from = tuple(mount_from)

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
        """Publish a model: layers, config, manifest by digest, tag last."""
        manifest, data = payload.manifest, payload.image_manifest
        reference = self.reference(manifest.name, manifest.version)
        digest = Digest.of(manifest.to_bytes())
        registry = Registry(self._access)
        try:
            if existing := self._published(registry, reference):
                return _same(existing, digest, reference)
            pinned = reference.with_digest(Digest.of(data))
            blobs = push_blobs(self._access, reference, payload.layers, mount_from=self._mount_from, on_bytes=on_bytes)
            blobs.append(registry.push_blob(reference, MemoryBlob(payload.image_config)))
            registry.push_manifest(replace(pinned, tag=None), data, OCI_MANIFEST)
            # Registries have no compare-and-swap on tags. Looking again just before narrows what a race can do, and
            # the tag is read back after it was written.
            if existing := self._published(registry, reference):
                return _same(existing, digest, reference)
            registry.push_manifest(reference, data, OCI_MANIFEST)
        finally:
            registry.close()
        moved_bytes = sum(blob.sent_bytes for blob in blobs)
        reused_bytes = sum(blob.size_bytes for blob in blobs if blob.how != "sent")
        return StoredModel(ModelUri.of_image(pinned), moved_bytes, reused_bytes, existed=False)

    def _published(self, registry: Registry, reference: ImageReference) -> PublishedModel | None:
        found = registry.resolve(reference)
        if found is None:
            return None
        pinned = reference.with_digest(found.digest)
        image = registry.image(pinned)
        try:
            if not image.layers:
                raise ModelError("it has no layers")
            known = peek_manifest(registry.open_blob(pinned, image.layers[-1]))
        except ModelError as error:
            raise ConflictError(f"{reference} is there and is not a model: {error.message}") from error
        return PublishedModel(known.manifest, Digest.of(known.manifest_bytes), ModelUri.of_image(pinned))


def _same(existing: PublishedModel, digest: Digest, reference: ImageReference) -> StoredModel:
    if existing.manifest_digest != digest:
        raise different(existing.manifest, str(reference))
    return StoredModel(existing.uri, 0, existing.manifest.size_bytes, existed=True)
