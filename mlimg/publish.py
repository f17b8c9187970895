"""Where a release goes: the local engine, a registry, a model store. Models first, tags last."""

from collections.abc import Container, Sequence
from dataclasses import replace
from functools import partial

from mlimg.append import append, model_image
from mlimg.contents import remote_image
from mlimg.means import Means
from mlimg.model_layer import ModelLayer, Sending
from mlimg.modelpack import model_pack
from mlimg.pack import PackedModel
from mlimg.plan import Plan
from mlimg.record import Part
from mlimg.runtime.descriptor import OCI_MANIFEST, Blob, Descriptor, MemoryBlob, OnBytes, StoredBlob, ignore_bytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, printable
from mlimg.runtime.oci import RemoteImage, push_blobs, send_and_name
from mlimg.runtime.oci.preflight import Preflight, preflight
from mlimg.runtime.oci.upload import PushedBlob
from mlimg.runtime.reference import MODEL_DIGEST_LABEL, SERVER_INPUTS_LABEL, ImageReference
from mlimg.runtime.stores import ModelPayload, open_store
from mlimg.server import Server, in_engine, registry_part
from mlimg.spec.schema import Pattern


def model_labels(packed: PackedModel) -> dict[str, str]:
    """What an image says of the model in it."""
    manifest = packed.manifest
    return {
        "io.mlimg.model.name": manifest.name,
        "io.mlimg.model.version": manifest.version,
        MODEL_DIGEST_LABEL: manifest.digest.text,
        "io.mlimg.model.framework": manifest.framework,
        "org.opencontainers.image.title": manifest.name,
        "org.opencontainers.image.version": manifest.version,
    }


def image_tags(plan: Plan) -> tuple[ImageReference, ImageReference]:
    """The tag that never moves, then the mission's tag, which follows the newest server."""
    return plan.image.with_tag(f"{plan.model.version}-{plan.server.version}"), plan.image


def model_target(plan: Plan, *, push: bool | None) -> ImageReference | None:
    """The tag under which a registry is to get the model: in its image, or as an artifact; None where none is."""
    if plan.pattern is Pattern.IN_IMAGE:
        return plan.image if push else None
    repository = model_repository(plan)
    leaves = repository is not None and plan.model.leaves(push=push)
    return repository.with_tag(plan.model.version) if repository and leaves else None


def is_new(plan: Plan, target: ImageReference, means: Means) -> bool:
    """Whether nothing is published under the model's version, in any repository that layers could be mounted from."""
    repository = model_repository(plan)
    artifact = [repository.with_tag(plan.model.version)] if repository else []
    tags = [tag for tag in (*image_tags(plan), *artifact) if tag.registry == target.registry]
    return all(means.registry.resolve(tag) is None for tag in tags)


def ask_registry(
    plan: Plan, target: ImageReference, layers: Sequence[ModelLayer], means: Means, *, begin: bool
) -> Preflight:
    """Ask where the model goes whether it may, and what of it is missing; nothing is left behind there.

    `begin` proves the first by beginning an upload. Raises LimitError for a layer that the registry does not take, and
    what `preflight` raises.
    """
    mounts = _mounts(plan) if target.repository == plan.image.repository else _image_mounts(plan)
    return preflight(means.registry, target, layers, mount_from=mounts, describe=_describe, begin=begin)


def _describe(blob: Blob) -> str:
    paths = blob.paths if isinstance(blob, ModelLayer) else ()
    return f"`{printable(str(paths[0]))}`" if len(paths) == 1 else f"a layer of {len(paths)} files"


def send_layers(target: ImageReference, layers: Sequence[ModelLayer], means: Means) -> tuple[list[ModelLayer], int]:
    """Send a new model's layers, hashed while they are sent; return them with their digests, and the bytes it took.

    Nothing names them yet: the registry drops what no manifest will name. Raises what `push_blobs` and the files raise.
    """
    blobs = [Sending(layer) if layer.digest is None else layer for layer in layers]
    size_bytes = sum(blob.size_bytes for blob in blobs)
    with means.report.step(f"push the model's layers to {target.name}", size_bytes) as step:
        pushed = _push(target, blobs, means, step.advance)
    arrived = [blob.arrived() if isinstance(blob, Sending) else blob for blob in blobs]
    return arrived, sum(at.sent_bytes for at in pushed)


def published_image(plan: Plan, model: Digest, means: Means) -> RemoteImage | None:
    """Look at both tags before anything moves; return what the fixed one stands for: this very release.

    Raises ConflictError when either tag holds another model, or the fixed one another server.
    """
    fixed, _ = (_published(tag, model, means) for tag in image_tags(plan))
    if fixed is None:
        return None
    theirs = fixed.labels.get(SERVER_INPUTS_LABEL, "")
    if theirs != plan.server.inputs.text:
        raise ConflictError(
            f"{image_tags(plan)[0]} is published with another server: {plan.server.difference(theirs)}",
            hint="raise server.version",
        )
    return fixed


def move_tag(plan: Plan, fixed: RemoteImage, means: Means) -> Part:
    """Let the mission's tag stand for a release that is published; not even its annotations become others."""
    current = means.registry.resolve(plan.image)
    if current is not None and current.digest == fixed.manifest.digest:
        return registry_part(plan.image, fixed, how="unchanged")
    descriptor, manifest = means.registry.manifest(plan.image.with_digest(fixed.manifest.digest))
    means.registry.push_manifest(plan.image, manifest, descriptor.media_type)
    return registry_part(plan.image, fixed, how="tagged")


def _published(tag: ImageReference, model: Digest, means: Means) -> RemoteImage | None:
    if means.registry.resolve(tag) is None:
        return None
    found = means.registry.image(tag)
    theirs = found.labels.get(MODEL_DIGEST_LABEL)
    if theirs != model.text:
        raise ConflictError(
            f"{tag} is published with another model ({theirs or 'none'}, not {model})",
            hint="raise model.version: a published version never changes",
        )
    return found


def image_to_engine(plan: Plan, server: Server, packed: PackedModel, means: Means) -> Part:
    """Lay the model on the server inside the local engine, where tags simply move."""
    from mlimg.engine.load import load  # noqa: PLC0415 (it brings the engine's SDK, which a push does not need)

    local = in_engine(server, means)
    image = append(local.image, packed.layers, model_labels(packed))
    tags = [str(tag) for tag in image_tags(plan)]
    existing = means.engine.image(tags[0])
    if existing is not None and existing.image.identity == image.identity:
        for tag in tags:
            means.engine.tag(existing.id, tag)
        return Part(
            str(plan.image), image.identity.text, existing.id, existing.size_bytes, published=False, how="unchanged"
        )
    with means.report.step(f"append the model to {server.reference}", packed.size_bytes) as step:
        appended = load(means.engine, local, image, packed.layers, tags=tags, on_bytes=step.advance)
    return Part(
        str(plan.image),
        image.identity.text,
        appended.id,
        local.size_bytes + packed.size_bytes,
        published=False,
        how="appended",
        moved_bytes=appended.sent_bytes,
    )


def image_to_registry(plan: Plan, server: RemoteImage, packed: PackedModel, means: Means) -> Part:
    """Append in the registry: no engine, no temporary copy; blobs that are there stay where they are."""
    image = append(remote_image(server), packed.layers, model_labels(packed))
    target = plan.image
    # The server's layers are read only where they are neither there nor mountable.
    read = partial(means.registry.open_blob, plan.server.image)
    blobs: list[Blob] = [*(StoredBlob(layer, partial(read, layer)) for layer in server.layers), *packed.layers]
    size_bytes = sum(blob.size_bytes for blob in blobs)

    def name() -> Part:
        if fixed := published_image(plan, packed.manifest.digest, means):
            return move_tag(plan, fixed, means)
        manifest = image.manifest(image_annotations(plan, server.manifest.digest, means))
        pinned = target.with_digest(_set_tags(plan, manifest, packed.manifest.digest, means).digest)
        return Part(str(target), image.identity.text, str(pinned), size_bytes, published=True, how="pushed")

    config = MemoryBlob(image.config())
    with means.report.step(f"push {target}", size_bytes) as step:

        def send(*, anew: Container[Digest]) -> list[PushedBlob]:
            on_bytes = ignore_bytes if anew else step.advance
            pushed = _push(target, blobs, means, on_bytes, mount_from=_mounts(plan), anew=anew)
            means.registry.push_blob(target, config, anew=config.digest in anew)
            return pushed

        part, pushed = send_and_name(send, name, on_note=means.report.note)
    return replace(part, moved_bytes=sum(blob.sent_bytes for blob in pushed))


def model_payload(packed: PackedModel) -> ModelPayload:
    """The model as stores, registries and layouts take it: the same bytes everywhere."""
    labels = model_labels(packed)
    image = model_image(packed.layers, labels)
    pack = model_pack(packed.manifest, packed.layers, labels)
    return ModelPayload(packed.manifest, packed.layers, image.config(), image.manifest(labels), packed.open, pack)


def _set_tags(plan: Plan, manifest: bytes, model: Digest, means: Means) -> Descriptor:
    """Let both tags stand for a new image. Raises ConflictError when somebody publishes another model meanwhile.

    Registries have no compare-and-swap. Of all who write the first tag, find nobody else's model under the second,
    write that, and find theirs still under the first, at most one is left: the splitter of Lamport's "A fast mutual
    exclusion algorithm" (1987).
    """
    for tag in image_tags(plan):
        descriptor = means.registry.push_manifest(tag, manifest, OCI_MANIFEST)
        published_image(plan, model, means)
    return descriptor


def _push(
    target: ImageReference,
    blobs: Sequence[Blob],
    means: Means,
    on_bytes: OnBytes,
    *,
    mount_from: Sequence[str] = (),
    anew: Container[Digest] = (),
) -> list[PushedBlob]:
    return push_blobs(
        means.access,
        target,
        blobs,
        mount_from=mount_from,
        on_bytes=on_bytes,
        on_note=means.report.note,
        journal=means.journal,
        anew=anew,
    )


def model_to_store(
    plan: Plan, packed: PackedModel, means: Means, *, store: str, published: bool, force: bool = False
) -> Part:
    """Put the model where the load pattern fetches it from. Raises ConflictError for another model in its place."""
    payload = model_payload(packed)
    title = f"put model {packed.manifest.name}:{packed.manifest.version} into {store}"
    with means.report.step(title, packed.size_bytes) as step:
        place = open_store(
            store,
            means.access,
            replace=not published,
            force=force,
            mount_from=_image_mounts(plan),
            journal=means.journal,
            on_note=means.report.note,
        )
        stored = place.publish(payload, on_bytes=step.advance)
    if stored.warning:
        means.report.warn(stored.warning)
    return Part(
        str(stored.uri),
        packed.manifest.digest.text,
        str(stored.uri),
        packed.size_bytes,
        published=published,
        how="unchanged" if stored.existed else "pushed" if published else "packed",
        moved_bytes=stored.moved_bytes,
    )


def model_repository(plan: Plan) -> ImageReference | None:
    """The repository of the model artifact, where the store is a registry."""
    if not plan.model.store.startswith("oci://"):
        return None
    return ImageReference.parse(f"{plan.model.store.removeprefix('oci://')}/{plan.model.name}")


def _mounts(plan: Plan) -> list[str]:
    """Repositories of the image's registry that may hold its layers already: the server's, and the model's."""
    candidates = [plan.server.image, model_repository(plan)]
    return [place.repository for place in candidates if place and place.registry == plan.image.registry]


def _image_mounts(plan: Plan) -> tuple[str, ...]:
    """The image's repository may hold the model's layers already, where it is in the store's registry."""
    repository = model_repository(plan)
    return (plan.image.repository,) if repository and repository.registry == plan.image.registry else ()


def image_annotations(plan: Plan, server: Digest, means: Means) -> dict[str, str]:
    """What an in-image image's manifest says of itself, and of the manifest of its server."""
    return {
        "org.opencontainers.image.base.digest": server.text,
        "org.opencontainers.image.base.name": str(plan.server.image),
        "org.opencontainers.image.created": means.created,
        "org.opencontainers.image.title": plan.model.name,
        "org.opencontainers.image.version": plan.model.version,
    }
