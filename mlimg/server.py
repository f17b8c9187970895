"""The server image: published, known by its key, or built, in that order; and its way to where it is needed."""

from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Literal

from mlimg.append import Image, append
from mlimg.contents import remote_image
from mlimg.engine.base import resolve_base
from mlimg.means import Means
from mlimg.plan import DEFAULT, BaseImage, Plan, Platform, ServerPlan
from mlimg.record import Part
from mlimg.runtime.descriptor import OCI_MANIFEST, MemoryBlob
from mlimg.runtime.errors import ConflictError, MlimgError, SpecError, UsageError
from mlimg.runtime.oci import RemoteImage
from mlimg.runtime.reference import SERVER_INPUTS_LABEL, ImageReference

if TYPE_CHECKING:  # the engine's SDK and jinja2 are a fifth of the start: a push onto a published server needs neither
    from mlimg.engine.docker import EngineImage
    from mlimg.render import Context

KEY_LABEL = "io.mlimg.server.key"
PUBLISHED_ANNOTATION = "io.mlimg.server.published"  # the day, on the manifest: no image has a time in it

How = Literal["published", "reused", "built"]


@dataclass(frozen=True, slots=True)
class Server:
    """A server image that exists: in the engine, in its registry, or in both."""

    reference: ImageReference
    how: How
    key: str
    local: "EngineImage | None" = None
    remote: RemoteImage | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the look-ups found: the published server that serves as it is, or else what a build needs."""

    published: RemoteImage | None
    base: BaseImage | None = None
    context: "Context | None" = None
    keyed: Server | None = None


def survey(plan: Plan, means: Means, *, push: bool) -> Facts:
    """Look for a server that serves; nothing is built or written.

    Raises ConflictError when another server is published under this version and this one is to be pushed.
    """
    server = plan.server
    published = _look_up(server.image, server.platform, means, needed=push)
    if published is not None:
        theirs = published.labels.get(SERVER_INPUTS_LABEL, "")
        if theirs == server.inputs.text:
            means.report.note(f"{server.image} was published {age(published, means.today)}: it is used as it is")
            return Facts(published)
        if push:
            raise ConflictError(
                f"{server.image} is published with other contents: {server.difference(theirs)}",
                hint="raise server.version (or leave it out: the default follows the contents)",
            )
        means.report.warn(f"{server.image} is published with other contents: this build stays on this machine")
    if push:
        _check_platform(plan, means)
    from mlimg.render import render  # noqa: PLC0415 (see above)

    base = resolve_base(means.engine, server.base_written, server.platform)
    context = render(server, base)
    return Facts(None, base, context, _by_key(server, context, means, push=push))


def _check_platform(plan: Plan, means: Means) -> None:
    """An engine that builds for another platform than what is published has to be told which one is meant."""
    ours = means.engine.platform
    if plan.settings["build.platform"].origin == DEFAULT and ours != plan.server.platform:
        raise SpecError(
            f"build.platform is not written, and this engine builds {ours}: --push would publish that",
            hint=f"write `platform: {plan.server.platform}` under `build:` (or the platform that your servers run)",
        )


def get_server(plan: Plan, facts: Facts, means: Means, *, no_cache: bool) -> Server:
    """Take the server that the survey found, or build it. Raises EngineError, CredentialsError and remote errors."""
    server = plan.server
    if facts.published is not None:
        key = facts.published.labels.get(KEY_LABEL, "")
        return Server(server.image, "published", key, remote=facts.published)
    assert facts.context is not None  # noqa: S101 (the survey gives one of the two)
    assert facts.base is not None  # noqa: S101
    if facts.keyed is not None and not no_cache:
        local = facts.keyed.local
        return facts.keyed if local is None else replace(facts.keyed, local=_under_version(local, server, means))
    from mlimg.engine import buildx  # noqa: PLC0415 (see above)

    _check_secrets(server, means)
    with means.report.step(f"build {server.image}") as step:
        built = buildx.build(
            means.engine,
            facts.context,
            platform=server.platform,
            base=facts.base,
            secrets=means.secrets,
            ca_bundle=means.ca_bundle,
            tags=[str(key_reference(server, facts.context)), str(server.image)],
            report=step,
            timeout_seconds=means.build_timeout_seconds,
            no_cache=no_cache,
        )
    return Server(server.image, "built", facts.context.key.text, local=built)


def _check_secrets(server: ServerPlan, means: Means) -> None:
    """BuildKit asks for a secret only when the step that needs it runs, and then late."""
    missing = [secret for secret in server.secrets if secret not in means.secrets]
    if missing:
        raise UsageError(
            f"build.secrets names {', '.join(f'`{secret}`' for secret in missing)}, and no file is given for it",
            hint=f"give --secret {missing[0]}=FILE or set MLIMG_SECRET_{missing[0].upper()}",
        )


def versioned(image: Image, server: ServerPlan) -> Image:
    """The same server under this plan's version, which is in its labels alone and so not in its key."""
    version = {"io.mlimg.server.version": server.version, "org.opencontainers.image.version": server.version}
    return append(image, (), version)


def _under_version(found: "EngineImage", server: ServerPlan, means: Means) -> "EngineImage":
    from mlimg.engine.load import load  # noqa: PLC0415 (see above)

    image = versioned(found.image, server)
    if image == found.image:
        means.engine.tag(found.id, str(server.image))
        return found
    relabelled = means.engine.image(load(means.engine, found, image, (), tags=[str(server.image)]).id)
    assert relabelled is not None  # noqa: S101 (the engine has just said so)
    return relabelled


def in_engine(server: Server, means: Means) -> "EngineImage":
    """The server as the engine has it, pulled when it is only in the registry."""
    if server.local is not None:
        return server.local
    assert server.remote is not None  # noqa: S101 (one of the two holds by construction)
    pinned = replace(server.reference, tag=None, digest=server.remote.manifest.digest)
    local = means.engine.image(str(pinned))
    if local is None:
        with means.report.step(f"pull {server.reference}"):
            local = means.engine.pull(str(pinned))
    means.engine.tag(local.id, str(server.reference))
    return local


def server_to_registry(plan: Plan, server: Server, facts: Facts, means: Means) -> RemoteImage:
    """Publish the server under its version; the engine pushes what only it has. What is published stays as it is."""
    if server.how == "published" and server.remote is not None:
        return server.remote
    reference = plan.server.image
    found = server.remote or _pushed_by_engine(plan, facts, means)
    image = versioned(remote_image(found), plan.server)
    means.registry.push_blob(reference, MemoryBlob(image.config()))
    manifest = image.manifest({PUBLISHED_ANNOTATION: means.today})
    descriptor = means.registry.push_manifest(reference, manifest, OCI_MANIFEST)
    return means.registry.image(reference.with_digest(descriptor.digest))


def _pushed_by_engine(plan: Plan, facts: Facts, means: Means) -> RemoteImage:
    """Have the engine push the layers, under the key: the version's tag is set when everything is there."""
    assert facts.context is not None  # noqa: S101 (what is not published was rendered to be found or built)
    reference = key_reference(plan.server, facts.context)
    with means.report.step(f"push {plan.server.image}") as step:
        digest = means.engine.push(str(reference), on_text=step.update)
    return means.registry.image(reference.with_digest(digest))


def server_in_registry(plan: Plan, server: Server, remote: RemoteImage) -> Part:
    """What the record says of a server that is published."""
    return registry_part(plan.server.image, remote, how=server.how)


def server_in_engine(plan: Plan, server: Server, means: Means) -> Part:
    """What the record says of a server that this machine's engine runs."""
    local = in_engine(server, means)
    published = server.how == "published"
    pinned = str(plan.server.image.with_digest(server.remote.manifest.digest)) if server.remote else local.id
    return Part(
        str(plan.server.image), local.image.identity.text, pinned, local.size_bytes, published=published, how=server.how
    )


def registry_part(reference: ImageReference, remote: RemoteImage, *, how: str) -> Part:
    """What the record says of an image that a registry has."""
    return Part(
        str(reference),
        remote_image(remote).identity.text,
        str(reference.with_digest(remote.manifest.digest)),
        sum(layer.size_bytes for layer in remote.layers),
        published=True,
        how=how,
    )


def key_reference(server: ServerPlan, context: "Context") -> ImageReference:
    """The reference under which a server is found by what went into it."""
    return server.image.with_tag(f"key-{context.key.hex[:12]}")


def _look_up(reference: ImageReference, platform: Platform, means: Means, *, needed: bool) -> RemoteImage | None:
    """Find an image in its registry. A registry that does not answer matters only when something is `needed` of it."""
    if reference.registry == "docker.io" and not needed:
        return None  # a name without a registry: what is only local is never asked for outside
    registry = means.registry if needed else means.quick_registry
    try:
        if registry.resolve(reference) is None:
            return None
        return registry.image(reference, (platform.os, platform.architecture, platform.variant))
    except MlimgError as error:
        if needed:
            raise
        means.report.note(f"{reference.registry} was not asked for a published server: {error.message}")
        return None


def age(published: RemoteImage, today: str) -> str:
    """How old a published server is, where its manifest says so: nothing in it was updated since."""
    try:
        days = (date.fromisoformat(today) - date.fromisoformat(published.annotations[PUBLISHED_ANNOTATION])).days
    except (KeyError, ValueError):
        return "before"
    return "today" if days <= 0 else f"{days} day{'s' if days > 1 else ''} ago"


def _by_key(server: ServerPlan, context: "Context", means: Means, *, push: bool) -> Server | None:
    reference = key_reference(server, context)
    local = means.engine.image(str(reference))
    if local is not None and local.image.labels.get(KEY_LABEL) == context.key.text:
        return Server(server.image, "reused", context.key.text, local=local)
    remote = _look_up(reference, server.platform, means, needed=False) if push else None
    if remote is not None and remote.labels.get(KEY_LABEL) == context.key.text:
        return Server(server.image, "reused", context.key.text, remote=remote)
    return None
