"""A release into an OCI layout: server, in-image image or model image, ModelPack artifact. Blobs first, names last.

No engine is needed when the server is in its registry. What the local engine has is written as it lies there: with its
own blobs on the containerd store, as plain tars on the graph driver.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlimg.append import Image, append
from mlimg.contents import remote_image
from mlimg.engine.save import known_layers, save_layers
from mlimg.layout import Layout, LayoutEntry, entry
from mlimg.layout_writer import LayoutWriter, writing
from mlimg.material import check, list_model
from mlimg.means import Means
from mlimg.modelpack import ARTIFACT_TYPE
from mlimg.pack import PackedModel
from mlimg.plan import Plan
from mlimg.publish import image_annotations, image_tags, model_labels, model_payload, model_repository
from mlimg.record import Part, Release, release_of
from mlimg.release import make_plan, pack_model, separately, together
from mlimg.runtime.descriptor import OCI_MANIFEST, Descriptor, OnBytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.oci.image import parse_manifest
from mlimg.runtime.reference import ImageReference, ModelUri
from mlimg.runtime.stores.oci import pack_reference
from mlimg.server import Server, get_server, in_engine, survey, versioned
from mlimg.spec.load import LoadedSpec
from mlimg.spec.schema import Pattern


@dataclass(frozen=True, slots=True)
class _Written:
    """An image or artifact in the layout, and the bytes that had to be written for it."""

    manifest: Descriptor
    size_bytes: int  # of its layers
    moved_bytes: int

    def part(self, reference: str, identity: str, pinned: str) -> Part:
        """What the release says of it."""
        how = "written" if self.moved_bytes else "unchanged"
        return Part(
            reference, identity, pinned, self.size_bytes, published=False, how=how, moved_bytes=self.moved_bytes
        )


def build_layout(
    loaded: LoadedSpec, means: Means, *, pattern: Pattern, folder: Path, no_cache: bool = False
) -> Release:
    """Write all that the release consists of into the layout `folder`, and give its record, which is not kept.

    What is there already is not written again, so a run that was killed is simply run again. Raises every error of
    the stages, and as `Layout.writing`.
    """
    started = time.monotonic()
    checked = list_model(check(loaded), means.access, means.report)
    layout = Layout(folder.absolute())
    releases = []
    for part in separately(checked, pattern, means):
        plan = make_plan(part, means, pattern=pattern, push=None, leaves=True)
        facts = survey(plan, means, push=False)
        packed = pack_model(part, plan, means)
        means.hashes.save()
        server = get_server(plan, facts, means, no_cache=no_cache)
        with writing(layout) as writer, means.hashes.forgetting():
            releases.append(_Writing(plan, means, writer, several=bool(checked.parts)).write(server, packed))
    release = together(checked, releases, seconds=round(time.monotonic() - started, 3))
    return replace(release, layout=str(layout.folder))


def model_reference(plan: Plan, *, several: bool = False) -> ImageReference:
    """The model image: where the store has it, or beside the image where the store is no registry."""
    beside = f"{plan.image.repository}-model" + (f"/{plan.model.name}" if several else "")
    repository = model_repository(plan) or replace(plan.image, repository=beside)
    return repository.with_tag(plan.model.version)


class _Writing:
    """One release on its way into a layout."""

    def __init__(self, plan: Plan, means: Means, writer: LayoutWriter, *, several: bool) -> None:
        self._plan = plan
        self._several = several
        self._means = means
        self._writer = writer
        self._layout = writer.layout

    def write(self, server: Server, packed: PackedModel) -> Release:
        """Everything, the index last."""
        plan = self._plan
        model_layers = list(_descriptors(packed))
        self._check_room(server, model_layers)
        image, written_server = self._server(server)
        entries = [entry(plan.server.image, written_server.manifest, **_platform(image))]
        moved_bytes = self._model_layers(packed)
        whole: Part | None = None
        if plan.pattern is Pattern.IN_IMAGE:
            whole, more = self._in_image(image, written_server.manifest.digest, packed, moved_bytes)
            identity = packed.manifest.digest.text
            name = f"{plan.model.name}:{plan.model.version}"
            model = Part(name, identity, identity, packed.size_bytes, published=False, how="packed")
        else:
            model, more = self._artifacts(packed, moved_bytes)
        self._writer.list_entries([*entries, *more])
        server_part = written_server.part(
            str(plan.server.image),
            image.identity.text,
            str(plan.server.image.with_digest(written_server.manifest.digest)),
        )
        parts = (server_part, whole or model)
        tags = [listed.name for listed in (*entries, *more)]
        unpublished = [part.reference for part in parts]
        return release_of(plan, server.key, server_part, model, image=whole, tags=tags, unpublished=unpublished)

    def _check_room(self, server: Server, model_layers: Sequence[Descriptor]) -> None:
        if server.remote is not None:
            self._writer.check_room([*server.remote.layers, *model_layers])
            return
        local = in_engine(server, self._means)
        known = known_layers(self._means.engine, local, _Sink(self._writer))
        self._writer.check_room([*(known or ()), *model_layers], more_bytes=0 if known else local.size_bytes)

    # The server

    def _server(self, server: Server) -> tuple[Image, _Written]:
        """The server with the blobs it has in the layout. What is published is taken over byte for byte."""
        plan, means = self._plan, self._means
        if server.remote is None:
            local = in_engine(server, means)
            with means.report.step(f"save {plan.server.image}"):
                sink = _Sink(self._writer)
                layers = known_layers(means.engine, local, sink) or save_layers(means.engine, local, sink)
            image = _with_blobs(versioned(local.image, plan.server), layers)
            return image, self._manifest(image.manifest(), image.config(), sink.moved_bytes)
        remote, reference = server.remote, server.reference
        image = remote_image(remote)
        moved_bytes = 0
        size_bytes = sum(layer.size_bytes for layer in remote.layers)
        with means.report.step(f"read {reference} from its registry", size_bytes) as step:
            for layer in remote.layers:
                chunks = means.registry.open_blob(reference, layer)
                moved_bytes += self._writer.add(layer, chunks, on_bytes=step.advance)
        if server.how != "published":
            image = versioned(image, plan.server)
            return image, self._manifest(image.manifest(), image.config(), moved_bytes)
        descriptor, manifest = means.registry.manifest(reference.with_digest(remote.manifest.digest))
        return image, self._manifest(manifest, remote.config_bytes, moved_bytes, descriptor.media_type)

    # The model

    def _model_layers(self, packed: PackedModel) -> int:
        title = f"write {packed.manifest.name}:{packed.manifest.version} into {self._layout.folder}"
        moved_bytes = 0
        with self._means.report.step(title, packed.size_bytes) as step:
            for layer, descriptor in zip(packed.layers, _descriptors(packed), strict=True):
                moved_bytes += self._add(descriptor, layer.chunks(), step.advance)
        return moved_bytes

    def _in_image(
        self, server: Image, base: Digest, packed: PackedModel, moved_bytes: int
    ) -> tuple[Part, list[LayoutEntry]]:
        plan = self._plan
        image = append(server, packed.layers, model_labels(packed))
        manifest = image.manifest(image_annotations(plan, base, self._means))
        written = self._manifest(manifest, image.config(), moved_bytes)
        part = written.part(str(plan.image), image.identity.text, str(plan.image.with_digest(written.manifest.digest)))
        return part, [entry(tag, written.manifest, **_platform(image)) for tag in image_tags(plan)]

    def _artifacts(self, packed: PackedModel, moved_bytes: int) -> tuple[Part, list[LayoutEntry]]:
        payload, reference = model_payload(packed), model_reference(self._plan, several=self._several)
        assert payload.model_pack is not None  # noqa: S101 (`model_payload` makes one)
        image = self._manifest(payload.image_manifest, payload.image_config, moved_bytes)
        pack = self._manifest(payload.model_pack.manifest, payload.model_pack.config, 0)
        uri = str(ModelUri.of_image(reference.with_digest(image.manifest.digest)))
        platform = {"platform": {"architecture": "amd64", "os": "linux"}}
        return image.part(uri, packed.manifest.digest.text, uri), [
            entry(reference, image.manifest, **platform),
            entry(pack_reference(reference), pack.manifest, artifactType=ARTIFACT_TYPE),
        ]

    # Blobs

    def _add(self, descriptor: Descriptor, chunks: Iterable[bytes | memoryview], on_bytes: OnBytes) -> int:
        return self._writer.add(descriptor, chunks, on_bytes=on_bytes)

    def _manifest(self, data: bytes, config: bytes, moved_bytes: int, media_type: str = OCI_MANIFEST) -> _Written:
        self._writer.add_document(config)
        self._writer.add_document(data)
        size_bytes = sum(layer.size_bytes for layer in parse_manifest(data, "the manifest").layers)
        return _Written(Descriptor(media_type, Digest.of(data), len(data)), size_bytes, moved_bytes)


class _Sink:
    """A layout as a `BlobSink`, which counts what is new in it."""

    def __init__(self, writer: LayoutWriter) -> None:
        self._writer = writer
        self.moved_bytes = 0

    def size_of(self, digest: Digest) -> int | None:
        return self._writer.layout.size_of(digest)

    def add_unknown(self, chunks: Iterator[bytes]) -> tuple[Digest, bool]:
        digest, is_new = self._writer.add_unknown(chunks)
        self.moved_bytes += (self.size_of(digest) or 0) if is_new else 0
        return digest, is_new

    def discard(self, digest: Digest) -> None:
        self.moved_bytes -= self.size_of(digest) or 0
        self._writer.discard(digest)


def _descriptors(packed: PackedModel) -> Iterator[Descriptor]:
    for layer in packed.layers:
        assert layer.digest is not None  # noqa: S101 (packing gives every layer its digest)
        yield Descriptor("", layer.digest, layer.size_bytes)


def _with_blobs(image: Image, layers: Sequence[Descriptor]) -> Image:
    described = [replace(layer, descriptor=blob) for layer, blob in zip(image.layers, layers, strict=True)]
    return replace(image, layers=tuple(described))


def _platform(image: Image) -> dict[str, Any]:
    platform = {"architecture": image.architecture, "os": image.os}
    return {"platform": platform | ({"variant": image.variant} if image.variant else {})}
