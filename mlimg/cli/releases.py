"""A release as people and pipelines read it."""

import json
from collections.abc import Iterator

from mlimg.cli.units import seconds, size
from mlimg.record import Part, Release


def result_lines(release: Release) -> dict[str, str]:
    """What to deploy, each by its exact bytes where it is published: ``name:tag@sha256:…``."""
    parts = {"image": release.image, "server": release.server, "model": release.model}
    return {key: exact_name(part) for key, part in parts.items() if part is not None}


def exact_name(part: Part) -> str:
    """The reference, pinned where there is a name with a digest. An engine's image ID is no name."""
    return part.pinned if "@" in part.pinned else part.reference


def document(release: Release) -> str:
    """The release record as a file holds it."""
    return json.dumps(release.to_json(), indent=1) + "\n"


def summary(release: Release) -> Iterator[str]:
    """A line a part, and at the end what has not left this machine."""
    named = (("server", release.server), ("model", release.model), ("image", release.image))
    for name, part in named:
        if part is not None:
            yield _line(name, part)
    for reference in release.models.values() if release.image else ():
        yield f"        with {reference}"
    yield f"{release.pattern} release of {release.name}:{release.model_version} in {seconds(release.seconds)}"
    if release.layout:
        yield f"all of it is in {release.layout} (`mlimg push {release.layout} --to REGISTRY` carries it on)"
    elif release.unpublished:
        yield f"not published: {', '.join(map(_short, release.unpublished))} (--push publishes)"
    else:
        yield "everything is published"


def server_summary(server: Part) -> Iterator[str]:
    """A line for a server that was made alone, and whether it has left this machine."""
    yield _line("server", server)
    if server.published:
        yield "the server is published"
    else:
        yield f"not published: {_short(server.reference)} (--push publishes)"


def _line(name: str, part: Part) -> str:
    moved = f", {size(part.moved_bytes)} moved" if part.moved_bytes else ""
    return f"{name:<7} {_short(part.reference)}  {size(part.size_bytes)}, {part.how}{moved}"


def _short(reference: str) -> str:
    """A reference, or several, without the digests, which results and records have."""
    return " ".join(word.partition("@")[0] for word in reference.split(" "))
