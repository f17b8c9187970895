"""What a build would do, in bytes: looked up, rendered and hashed, and nothing written anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass

from mlimg.material import check, list_model
from mlimg.means import Means
from mlimg.pack import PackedModel
from mlimg.plan import Plan
from mlimg.publish import ask_registry, model_target, published_image
from mlimg.release import make_plan, pack_model, separately
from mlimg.runtime.oci.preflight import Preflight
from mlimg.runtime.stores import different, open_store
from mlimg.server import Facts, survey
from mlimg.spec.load import LoadedSpec
from mlimg.spec.schema import Pattern


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing that would be done: ``action`` is build, reuse, pack, append, upload, push, tag or write.

    `size_bytes` is what it would move, None where only doing it tells. `repository` is what it would write to,
    where that is outside this machine.
    """

    action: str
    what: str
    why: str
    size_bytes: int | None = None
    repository: str = ""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a build would do."""

    plan: Plan
    effects: tuple[Effect, ...]
    server_key: str

    @property
    def repositories(self) -> tuple[str, ...]:
        """What it would write to outside this machine."""
        return tuple(dict.fromkeys(effect.repository for effect in self.effects if effect.repository))


def preview(loaded: LoadedSpec, means: Means, *, pattern: Pattern, push: bool | None = None) -> Preview:
    """Say what `build` would do. Raises what `build` would raise before its first lasting step."""
    checked = list_model(check(loaded), means.access, means.report)
    plan = make_plan(checked, means, pattern=pattern, push=push)
    facts = survey(plan, means, push=push is True)
    effects = [_server(plan, facts)]
    for part in separately(checked, pattern, means):
        planned = make_plan(part, means, pattern=pattern, push=push) if part in checked.parts else plan
        packed = pack_model(part, planned, means)
        effects += [_packed(packed), *_delivery(planned, facts, packed, means, push=push)]
    return Preview(
        plan=plan,
        effects=tuple(dict.fromkeys(effects)),
        server_key=facts.context.key.text if facts.context else "",
    )


def _server(plan: Plan, facts: Facts) -> Effect:
    name = str(plan.server.image)
    if facts.published is not None:
        return Effect("reuse", name, "published with these inputs", 0)
    if facts.keyed is not None:
        where = "the engine" if facts.keyed.local is not None else "its registry"
        return Effect("reuse", name, f"{where} has an image with this key", 0)
    return Effect("build", name, f"no image with these inputs on {plan.server.base_written}")


def _packed(packed: PackedModel) -> Effect:
    manifest = packed.manifest
    why = f"files: {len(manifest.files)}, layers: {len(packed.layers)}, {manifest.digest}"
    return Effect("pack", f"{manifest.name}:{manifest.version}", why, packed.size_bytes)


def _delivery(plan: Plan, facts: Facts, packed: PackedModel, means: Means, *, push: bool | None) -> Iterator[Effect]:
    if push and facts.published is None:
        name = plan.server.image
        yield Effect("push", str(name), "the server is not published; its registry may have layers", None, name.name)
    if plan.pattern is Pattern.LOAD:
        yield _store(plan, packed, means, push=push)
    elif not push:
        yield Effect("append", str(plan.image), "to the server in the engine", packed.size_bytes)
    else:
        yield _image(plan, packed, means)


def _image(plan: Plan, packed: PackedModel, means: Means) -> Effect:
    name, repository = str(plan.image), plan.image.name
    published = published_image(plan, packed.manifest.digest, means)
    if published is None:
        asked = ask_registry(plan, plan.image, packed.layers, means, begin=False)
        why = _mounted("model layers that its repository lacks", asked)
        return Effect("upload", name, why, asked.missing_bytes, repository)
    current = means.registry.resolve(plan.image)
    if current is not None and current.digest == published.manifest.digest:
        return Effect("reuse", name, "this release is published", 0)
    return Effect("tag", name, "this release is published, and the tag is another's", 0, repository)


def _store(plan: Plan, packed: PackedModel, means: Means, *, push: bool | None) -> Effect:
    model = plan.model
    leaves = model.leaves(push=push)
    if not leaves:
        return Effect("write", f"{model.name}:{model.version}", "the local store", packed.size_bytes)
    place = f"{model.store}/{model.name}"
    published = open_store(model.store, means.access).published(model.name, model.version)
    if published is not None:
        if published.manifest_digest != packed.manifest_digest:
            raise different(published.manifest, f"{place}:{model.version}")
        return Effect("reuse", f"{place}:{model.version}", "this model is published", 0)
    target = model_target(plan, push=push)
    if target is None:
        return Effect("upload", f"{place}:{model.version}", "what the store lacks", packed.size_bytes, place)
    asked = ask_registry(plan, target, packed.layers, means, begin=False)
    why = _mounted("what the store lacks", asked)
    return Effect("upload", f"{place}:{model.version}", why, asked.missing_bytes, place)


def _mounted(lacking: str, asked: Preflight) -> str:
    """Say what needs no upload, as another repository of the registry has it."""
    return f"{lacking}; {asked.mountable_bytes} bytes are mounted" if asked.mountable_bytes else lacking
