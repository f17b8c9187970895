"""The command `mlimg inspect`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlimg.cli import session
from mlimg.cli.options import Debug, Json, Quiet, terminal_of
from mlimg.cli.releases import summary
from mlimg.cli.units import size
from mlimg.record import Release, read_record
from mlimg.runtime.errors import EngineError, UsageError, printable

if TYPE_CHECKING:
    from mlimg.engine.docker import EngineImage


def inspect(
    context: typer.Context,
    *,
    what: Annotated[
        str,
        typer.Argument(
            metavar="PATH|IMAGE",
            help="A spec or its folder, for the release that was built there; or an image in the engine.",
            show_default="current folder",
        ),
    ] = ".",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the last release, or what an image is made of.

    An image is looked up in the engine, then in its registry.
    """
    terminal = terminal_of(context)
    if Path(what).exists():
        release = read_record(session.spec_folder(Path(what)))
        if terminal.json:
            terminal.document(release.to_json())
        else:
            terminal.text("".join(f"{line}\n" for line in _release_lines(release)))
        return
    image = _find(what)
    if terminal.json:
        terminal.document(_image_document(image))
    else:
        terminal.text("".join(f"{line}\n" for line in _image_lines(image)))


def _find(reference: str) -> "EngineImage":
    from mlimg.engine.docker import Engine
    from mlimg.runtime.reference import ImageReference

    if not reference.startswith("sha256:"):
        try:
            ImageReference.parse(reference)
        except ValueError as error:
            raise UsageError(
                f"{printable(reference)} is neither a path that is there nor an image: {printable(str(error))}"
            ) from error
    image = Engine.connect().image(reference)
    if image is None:
        raise EngineError(f"the engine has no image {printable(reference)}", hint="`docker pull` fetches one")
    return image


def _release_lines(release: Release) -> Iterator[str]:
    yield from summary(release)
    yield ""
    for name, part in (("server", release.server), ("model", release.model), ("image", release.image)):
        if part is not None:
            yield f"{name} digest  {part.digest}"
            yield f"{name} pinned  {part.pinned}"
    yield f"server version {release.server_version}, inputs {release.server_inputs}"
    yield f"server key     {release.server_key}"
    yield from (f"tag            {tag}" for tag in release.tags)


def _image_document(image: "EngineImage") -> dict[str, Any]:
    return {
        "id": image.id,
        "identity": image.image.identity.text,
        "platform": str(image.platform),
        "tags": list(image.repo_tags),
        "digests": list(image.repo_digests),
        "size_bytes": image.size_bytes,
        "layers": len(image.image.layers),
        "labels": dict(image.image.labels),
        "user": image.image.settings.get("User"),
        "entrypoint": image.image.settings.get("Entrypoint"),
        "command": image.image.settings.get("Cmd"),
    }


def _image_lines(image: "EngineImage") -> Iterator[str]:
    for key, value in _image_document(image).items():
        if key == "labels":
            yield from (f"label     {name}={printable(text)}" for name, text in value.items())
        elif key == "size_bytes":
            yield f"{'size':<9} {size(value)}"
        elif isinstance(value, list):
            yield f"{key:<9} {printable(' '.join(map(str, value)))}"
        else:
            yield f"{key:<9} {printable(str(value or ''))}"
