"""What a build would do, in bytes: looked up, rendered and hashed, and nothing written anywhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlimg.material import check
from mlimg.means import Means
from mlimg.pack import PackedModel
from mlimg.plan import Plan
from mlimg.publish import image_tags, model_repository, published_image
from mlimg.release import make_plan, pack_model
from mlimg.runtime.descriptor import Blob
from mlimg.runtime.reference import ImageReference
from mlimg.runtime.stores import open_store
from mlimg.server import Facts, survey
from mlimg.spec.load import LoadedSpec
from mlimg.spec.schema import Pattern


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing that would be done: ``action`` is build, reuse, pack, append, upload, push or write."""

    action: str
    what: str
    why: str
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a build would do. `repositories` are those it would write to; `origins` say where settings came from."""

    plan: Plan
    effects: tuple[Effect, ...]
    repositories: tuple[str, ...]
    origins: Mapping[str, str]
    server_key: str


def preview(loaded: LoadedSpec, means: Means, *, pattern: Pattern, push: bool | None = None) -> Preview:
    """Say what `build` would do. Raises what `build` would raise before its first lasting step."""
    checked = check(loaded)
    plan = make_plan(checked, means, pattern=pattern, push=push)
    facts = survey(plan, means, push=push is True)
    packed = pack_model(checked, plan, means)
    effects = [_server(plan, facts), _packed(packed), *_delivery(plan, facts, packed, means, push=push)]
    return Preview(
        plan=plan,
        effects=tuple(effects),
        repositories=_repositories(plan, push=push),
        origins=plan.origins,
        server_key=facts.context.key.text if facts.context else "",
    )


def _server(plan: Plan, facts: Facts) -> Effect:
    name = str(plan.server.image)
    if facts.published is not None:
        return Effect("reuse", name, "published with these inputs")
    if facts.keyed is not None:
        where = "the engine" if facts.keyed.local is not None else "its registry"
        return Effect("reuse", name, f"{where} has an image with this key")
    return Effect("build", name, f"no image with these inputs on {plan.server.base_written}")


def _packed(packed: PackedModel) -> Effect:
    manifest = packed.manifest
    why = f"{len(manifest.files)} files in {len(packed.layers)} layers, {manifest.digest}"
    return Effect("pack", f"{manifest.name}:{manifest.version}", why, packed.size_bytes)


def _delivery(plan: Plan, facts: Facts, packed: PackedModel, means: Means, *, push: bool | None) -> Iterator[Effect]:
    if push and facts.published is None:
        yield Effect("push", str(plan.server.image), "the server is not published")
    if plan.pattern is Pattern.LOAD:
        yield _store(plan, packed, means, push=push)
    elif not push:
        yield Effect("append", str(plan.image), "to the server in the engine", packed.size_bytes)
    elif published_image(plan, packed.manifest.digest, means) is not None:
        yield Effect("reuse", str(plan.image), "this release is published", 0)
    else:
        missing = _missing(plan.image, packed.layers, means)
        yield Effect("upload", str(plan.image), "model layers that its repository lacks", missing)


def _store(plan: Plan, packed: PackedModel, means: Means, *, push: bool | None) -> Effect:
    model = plan.model
    leaves = model.store_is_named and push is not False
    if not leaves:
        return Effect("write", f"{model.name}:{model.version}", "the local store", packed.size_bytes)
    published = open_store(model.store, means.access).published(model.name, model.version)
    if published is not None and published.manifest_digest == packed.manifest_digest:
        return Effect("reuse", f"{model.store}/{model.name}:{model.version}", "this model is published", 0)
    repository = model_repository(plan)
    missing = packed.size_bytes if repository is None else _missing(repository, packed.layers, means)
    return Effect("upload", f"{model.store}/{model.name}:{model.version}", "what the store lacks", missing)


def _missing(repository: ImageReference, layers: Sequence[Blob], means: Means) -> int:
    registry = means.registry
    return sum(
        layer.size_bytes for layer in layers if layer.digest and registry.has_blob(repository, layer.digest) is None
    )


def _repositories(plan: Plan, *, push: bool | None) -> tuple[str, ...]:
    names: list[str] = []
    if push:
        names.append(plan.server.image.name)
    if push and plan.pattern is Pattern.IN_IMAGE:
        names += [tag.name for tag in image_tags(plan)]
    if plan.pattern is Pattern.LOAD and plan.model.store_is_named and push is not False:
        names.append(f"{plan.model.store}/{plan.model.name}")
    return tuple(dict.fromkeys(names))
