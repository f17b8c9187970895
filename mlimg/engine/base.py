"""Which image a server is built on: decided once, so that a tag that moves meanwhile changes nothing."""

from typing import TYPE_CHECKING, Final

from mlimg.plan import BaseImage, Platform
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError
from mlimg.runtime.reference import ImageReference

if TYPE_CHECKING:
    from mlimg.engine.docker import Engine, EngineImage

# Names of ours in the engine. `.local` is no registry's, so nothing under it can be pulled or pushed by accident.
PRIVATE_REGISTRY: Final = "mlimg.local"
BASE_REPOSITORY: Final = f"{PRIVATE_REGISTRY}/base"


def resolve_base(engine: "Engine", written: str, platform: Platform) -> BaseImage:
    """Take the base that the engine has, as `docker build` would, else have it pulled.

    Raises EngineError when it is not for `platform`, and what a pull raises.
    """
    reference = ImageReference.parse(written)
    image = engine.image(str(reference))
    if image is None or not _is_for(image, platform):
        image = _pull(engine, reference, platform, image)
    digest = reference.digest or _digest(image, reference)
    pinned = ImageReference(reference.registry, reference.repository, digest=digest) if digest else reference
    # The containerd store makes up a digest for what never was in a registry, so there every base is named privately.
    context = None
    if digest is None or engine.store == "containerd":
        context = ImageReference(PRIVATE_REGISTRY, "base", tag=image.id.removeprefix("sha256:")[:12])
        engine.tag(image.id, str(context))
    return BaseImage(
        written=written,
        pinned=str(pinned),
        identity=image.image.identity,
        diff_ids=image.image.diff_ids,
        build_context=context,
    )


def _pull(
    engine: "Engine", reference: ImageReference, platform: Platform, there: "EngineImage | None"
) -> "EngineImage":
    if there is not None and not there.repo_digests:
        raise EngineError(
            f"the base {reference} is only in the engine, for {there.platform}; the server is for {platform}",
            hint="write build.platform, or name a base for that platform",
        )
    image = engine.pull(str(reference), platform)
    if not _is_for(image, platform):
        raise EngineError(
            f"the base {reference} is for {image.platform}; the server is for {platform}",
            hint="write build.platform, or name a base for that platform",
        )
    return image


def _is_for(image: "EngineImage", platform: Platform) -> bool:
    """Whether the platform runs it: variants are numbered, and a later one runs what is made for an earlier."""
    own = image.platform
    # https://github.com/containerd/platforms/blob/v1.0.0/database.go: what `linux/arm` alone stands for.
    variant = platform.variant or ("v7" if platform.architecture == "arm" else "")
    return (own.os, own.architecture) == (platform.os, platform.architecture) and own.variant <= variant


def _digest(image: "EngineImage", reference: ImageReference) -> Digest | None:
    """The manifest that the repository of `reference` gave, None where the image came from elsewhere."""
    for text in image.repo_digests:
        name, _, digest = text.partition("@")
        if name == reference.name:
            return Digest.parse(digest)
    return None
