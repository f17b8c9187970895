"""The order of steps: check, plan, survey, reuse or build, publish, record; nothing else."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from mlimg.material import Checked, Unlisted, check, check_server, list_model, named
from mlimg.means import Means
from mlimg.model_layer import ModelLayer
from mlimg.pack import PackedModel, lay_out, pack, recall
from mlimg.plan import PUBLISHED_PLATFORM, ModelPlan, Plan, Platform, Setting, resolve
from mlimg.publish import (
    ask_registry,
    image_tags,
    image_to_engine,
    image_to_registry,
    is_new,
    model_target,
    model_to_store,
    move_tag,
    published_image,
    send_layers,
)
from mlimg.record import Part, Release, local_store, release_of, write_record
from mlimg.runtime.descriptor import OnBytes
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import SpecError, telling
from mlimg.runtime.reference import ImageReference
from mlimg.server import (
    Facts,
    get_server,
    server_in_engine,
    server_in_registry,
    server_to_registry,
    survey,
)
from mlimg.sources import ModelSource
from mlimg.sources.several import NamedModel, SeveralModels
from mlimg.spec.load import LoadedSpec
from mlimg.spec.schema import Pattern


def build(
    loaded: LoadedSpec,
    means: Means,
    *,
    pattern: Pattern,
    push: bool | None = None,
    no_cache: bool = False,
    force: bool = False,
) -> Release:
    """Make the release, and record it beside the spec.

    `push`: True sends everything of the release, False nothing; None sends a model of the load pattern to the
    store that the spec names, and nothing else. `force` takes over a version that another model claimed there and
    never finished; what is published stays. Raises every error of the stages; what was made before an
    error is found again by the next run.
    """
    started = time.monotonic()
    checked = list_model(check(loaded), means.access, means.report)
    apart = [(part, make_plan(part, means, pattern=pattern, push=push)) for part in separately(checked, pattern, means)]
    with means.turn() if push or any(model_target(plan, push=push) for _, plan in apart) else nullcontext():
        releases: list[Release] = []
        for part, plan in apart:
            with telling(_published(releases)):
                releases.append(_release_of(part, plan, means, push=push, no_cache=no_cache, force=force))
    release = together(checked, releases, seconds=round(time.monotonic() - started, 3))
    with telling(_published(releases)):
        write_record(loaded.path.parent, release)
    return release


def _published(releases: Iterable[Release]) -> Iterator[str]:
    """What several runs of the steps have published."""
    parts = [
        part
        for release in releases
        for part in (release.server, release.model if release.image is None else None, release.image)
    ]
    yield from dict.fromkeys(_news(*filter(None, parts)))


def _news(*made: Part) -> Iterator[str]:
    """What this run has published."""
    return (part.pinned for part in made if part.published and part.how not in {"published", "unchanged"})


def _release_of(
    checked: Checked, plan: Plan, means: Means, *, push: bool | None, no_cache: bool, force: bool
) -> Release:
    facts = survey(plan, means, push=push is True)
    model = _Model(checked, plan, means, push=push)
    if push and facts.published is None:
        means.registry.check_push(plan.server.image)
    with means.hashes.forgetting():
        if plan.pattern is Pattern.IN_IMAGE:
            return _in_image(plan, facts, model, means, push=push is True, no_cache=no_cache)
        folder = checked.loaded.path.parent
        return _load(plan, facts, model, means, folder=folder, push=push, no_cache=no_cache, force=force)


def build_server(loaded: LoadedSpec, means: Means, *, push: bool, no_cache: bool = False) -> Part:
    """Have the server alone, in the engine or with `push` in its registry: what CI does once, for many models.

    No model is needed, unless it names packages of the server, and no release is recorded. Raises what the stages of
    the server raise.
    """
    checked: Checked | Unlisted = check_server(loaded)
    if checked.material.template.model_requirements:
        checked = list_model(check(loaded), means.access, means.report)
    plan = make_plan(checked, means, pattern=Pattern.IN_IMAGE, push=push)
    facts = survey(plan, means, push=push)
    server = get_server(plan, facts, means, no_cache=no_cache)
    if not push:
        return server_in_engine(plan, server, means)
    return server_in_registry(plan, server, server_to_registry(plan, server, facts, means))


def make_plan(
    checked: Checked | Unlisted, means: Means, *, pattern: Pattern, push: bool | None, leaves: bool = False
) -> Plan:
    """Decide everything that needs no look-up but the engine's platform. Raises SpecError, EngineError.

    What is pushed, or `leaves` otherwise, is for one platform whoever builds it, so that no engine is asked where none
    has to build.
    """
    loaded = checked.loaded
    written = loaded.spec.build.platform
    platform = Platform.parse(written) if written else PUBLISHED_PLATFORM if push or leaves else means.engine.platform
    plan = resolve(
        loaded.spec,
        checked.material,
        platform,
        pattern=pattern,
        local_store=local_store(loaded.path.parent),
        origins=loaded.origins,
    )
    if push and pattern is Pattern.LOAD and "://" not in plan.model.store:
        key = loaded.shown("model.store")
        raise SpecError(
            f"{key} names neither registry nor object store, so --push could not send the model",
            hint=f"write `store: oci://REGISTRY/REPOSITORY` under `{loaded.at}:`",
        )
    if unreachable := checked.material.unreachable(pattern):
        means.report.warn(unreachable)
    return replace(plan, settings=_of_several(plan, loaded)) if loaded.models else plan


def _of_several(plan: Plan, loaded: LoadedSpec) -> dict[str, Setting]:
    """The settings by the keys that a spec of several models has."""
    settings = {key: setting for key, setting in plan.settings.items() if not key.startswith("model.")}
    settings["version"] = plan.settings["model.version"]
    for model in loaded.models:
        written = model.spec.model.model_dump(mode="json")
        for key, origin in model.origins.items():
            if key.startswith("model."):
                settings[model.shown(key)] = Setting(written[key.removeprefix("model.")], origin)
    return dict(sorted(settings.items()))


def separately(checked: Checked, pattern: Pattern, means: Means) -> Sequence[Checked]:
    """What is published by itself: of several models a server fetches each alone, and an image holds all.

    For the latter their files are hashed, as the manifests of the models are among those of the image. Raises as
    `pack_model`.
    """
    if not checked.parts:
        return (checked,)
    if pattern is Pattern.LOAD:
        return checked.parts
    models = [named(part) for part in checked.parts]
    with means.report.step(f"hash {len(models)} models", checked.inventory.size_bytes) as step:
        manifests = [_packed(model, model.source, means, step.advance).manifest for model in models]
    source = SeveralModels([replace(model, manifest=known) for model, known in zip(models, manifests, strict=True)])
    return (replace(checked, source=source, inventory=source.inventory()),)


def together(checked: Checked, releases: Sequence[Release], *, seconds: float) -> Release:
    """One release of what was published by itself; its models' references are what `MLIMG_MODEL` is set to."""
    first = replace(releases[0], seconds=seconds)
    if not checked.parts or first.image is not None:
        names = [named(part) for part in checked.parts]
        return replace(first, models={model.name: f"{model.name}:{model.version}" for model in names})
    spec, parts = checked.loaded.spec, {release.name: release.model for release in releases}
    model = Part(
        reference=" ".join(part.reference for part in parts.values()),
        digest=Digest.of(canonical_json({name: part.digest for name, part in parts.items()})).text,
        pinned=" ".join(part.pinned for part in parts.values()),
        size_bytes=sum(part.size_bytes for part in parts.values()),
        published=all(part.published for part in parts.values()),
        how="unchanged" if all(part.how == "unchanged" for part in parts.values()) else first.model.how,
        moved_bytes=sum(part.moved_bytes for part in parts.values()),
    )
    return replace(
        first,
        name=ImageReference.parse(spec.image).repository.rpartition("/")[2],
        model=model,
        model_version=spec.model.version,
        models={name: part.pinned for name, part in parts.items()},
        tags=tuple(dict.fromkeys(tag for release in releases for tag in release.tags)),
        unpublished=tuple(dict.fromkeys(name for release in releases for name in release.unpublished)),
    )


def pack_model(checked: Checked, plan: Plan, means: Means) -> PackedModel:
    """Hash the model's files into layers, but for what is known. Raises ModelError, LimitError, LocalIOError."""
    return _pack(checked, plan, means)


def _pack(checked: Checked, plan: Plan, means: Means, sent: Sequence[ModelLayer] = ()) -> PackedModel:
    model = plan.model
    with means.report.step(f"pack model {model.name}:{model.version}", checked.inventory.size_bytes) as step:
        return _packed(model, checked.source, means, step.advance, sent)


def _packed(
    model: ModelPlan | NamedModel, source: ModelSource, means: Means, on_bytes: OnBytes, sent: Sequence[ModelLayer] = ()
) -> PackedModel:
    return pack(
        source,
        name=model.name,
        version=model.version,
        framework=model.framework,
        format=model.format,
        on_bytes=on_bytes,
        hashes=means.hashes,
        sent=sent,
    )


class _Model:
    """The model of a release: packed before anything moves, or hashed while its layers are sent.

    The second is for a model that is not hashed yet and whose version nobody has published: there is nothing that its
    digests could be compared with. Raises what `pack_model` raises, and what a registry raises.
    """

    def __init__(self, checked: Checked, plan: Plan, means: Means, *, push: bool | None) -> None:
        self._checked = checked
        self._plan = plan
        self._means = means
        self._target = model_target(plan, push=push)
        self._to_send: Sequence[ModelLayer] = ()
        self.sent_bytes = 0
        if self._target is None:
            self.packed: PackedModel | None = self._pack()
            return
        layers = [recall(layer, means.hashes) for layer in lay_out(checked.source)]
        lower = layers[:-1]
        if not all(layer.digest for layer in lower) and is_new(plan, self._target, means):
            self._to_send = lower
        self.packed = None if self._to_send else self._pack()
        if self.packed is None or means.registry.resolve(self._target) is None:
            ask_registry(plan, self._target, self.packed.layers if self.packed else layers, means, begin=True)

    def send(self) -> PackedModel:
        """The packed model, some of whose layers may be on their way by then."""
        if self.packed is None:
            assert self._target is not None  # noqa: S101 (there are layers to send to it)
            layers, self.sent_bytes = send_layers(self._target, self._to_send, self._means)
            self.packed = self._pack(layers)
        return self.packed

    def _pack(self, sent: Sequence[ModelLayer] = ()) -> PackedModel:
        packed = _pack(self._checked, self._plan, self._means, sent)
        self._means.hashes.save()
        return packed

    def moved(self, part: Part) -> Part:
        """What became of it, with the bytes that `send` had sent before."""
        return replace(part, moved_bytes=part.moved_bytes + self.sent_bytes)


def _in_image(plan: Plan, facts: Facts, model: _Model, means: Means, *, push: bool, no_cache: bool) -> Release:
    published = published_image(plan, model.packed.manifest.digest, means) if push and model.packed else None
    server = get_server(plan, facts, means, no_cache=no_cache)
    if not push:
        packed = model.send()
        image = image_to_engine(plan, server, packed, means)
        server_part = server_in_engine(plan, server, means)
    else:
        remote = server_to_registry(plan, server, facts, means)
        server_part = server_in_registry(plan, server, remote)
        with telling(_news(server_part)):
            packed = model.send()
            if published:
                image = move_tag(plan, published, means)
            else:
                image = model.moved(image_to_registry(plan, remote, packed, means))
    identity = packed.manifest.digest.text
    model_part = Part(
        reference=f"{plan.model.name}:{plan.model.version}",
        digest=identity,
        pinned=identity,
        size_bytes=packed.size_bytes,
        published=push,
        how="packed",
    )
    unpublished = () if push else (image.reference,)
    tags = (plan.server.image, *image_tags(plan))
    return release_of(
        plan, server.key, server_part, model_part, image=image, tags=map(str, tags), unpublished=unpublished
    )


def _load(
    plan: Plan,
    facts: Facts,
    model: _Model,
    means: Means,
    *,
    folder: Path,
    push: bool | None,
    no_cache: bool,
    force: bool,
) -> Release:
    leaves = plan.model.leaves(push=push)
    store = plan.model.store if leaves else str(local_store(folder))
    if leaves and push is None:
        means.report.note(f"the model goes to {store}, as model.store says; --no-push keeps it here")
    server = get_server(plan, facts, means, no_cache=no_cache)
    stored = model_to_store(plan, model.send(), means, store=store, published=leaves, force=force)
    model_part = model.moved(stored)
    with telling(_news(model_part)):
        if push:
            server_part = server_in_registry(plan, server, server_to_registry(plan, server, facts, means))
        else:
            server_part = server_in_engine(plan, server, means)
    parts = (server_part, model_part)
    unpublished = tuple(part.reference for part in parts if not part.published)
    tags = (str(plan.server.image),)
    return release_of(plan, server.key, server_part, model_part, tags=tags, unpublished=unpublished)
