"""The order of steps: check, plan, survey, reuse or build, publish, record; nothing else."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from mlimg.material import Checked, Unlisted, check, check_server, list_model
from mlimg.means import Means
from mlimg.model_layer import ModelLayer
from mlimg.pack import PackedModel, lay_out, pack, recall
from mlimg.plan import PUBLISHED_PLATFORM, Plan, Platform, resolve
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
from mlimg.runtime.errors import SpecError, telling
from mlimg.server import (
    Facts,
    get_server,
    server_in_engine,
    server_in_registry,
    server_to_registry,
    survey,
)
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
    plan = make_plan(checked, means, pattern=pattern, push=push)
    with means.turn() if push or model_target(plan, push=push) else nullcontext():
        release = _release_of(checked, plan, means, push=push, no_cache=no_cache, force=force)
    release = replace(release, seconds=round(time.monotonic() - started, 3))
    made = filter(None, (release.server, release.model if release.image is None else None, release.image))
    with telling(_news(*made)):
        write_record(loaded.path.parent, release)
    return release


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
        raise SpecError(
            "model.store names neither registry nor object store, so --push could not send the model",
            hint="write `store: oci://REGISTRY/REPOSITORY` under `model:`",
        )
    if unreachable := checked.material.unreachable(pattern):
        means.report.warn(unreachable)
    return plan


def pack_model(checked: Checked, plan: Plan, means: Means) -> PackedModel:
    """Hash the model's files into layers, but for what is known. Raises ModelError, LimitError, LocalIOError."""
    return _pack(checked, plan, means)


def _pack(checked: Checked, plan: Plan, means: Means, sent: Sequence[ModelLayer] = ()) -> PackedModel:
    model = plan.model
    with means.report.step(f"pack model {model.name}:{model.version}", checked.inventory.size_bytes) as step:
        return pack(
            checked.source,
            name=model.name,
            version=model.version,
            framework=model.framework,
            format=model.format,
            on_bytes=step.advance,
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
