"""The command `mlimg inspect`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlimg.cli import session
from mlimg.cli.options import Debug, Json, Quiet, terminal_of
from mlimg.cli.releases import summary
from mlimg.cli.terminal import Terminal
from mlimg.cli.units import size
from mlimg.record import Release, read_record
from mlimg.runtime.errors import EngineError, UsageError, printable

if TYPE_CHECKING:
    from mlimg.append import Image
    from mlimg.engine.docker import EngineImage
    from mlimg.runtime.reference import ImageReference


def inspect(
    context: typer.Context,
    *,
    what: Annotated[
        str,
        typer.Argument(
            metavar="PATH|IMAGE",
            help="A spec or its folder, for the release that was built there; or an image.",
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
    image = _find(terminal, what)
    if terminal.json:
        terminal.document(image)
    else:
        terminal.text("".join(f"{line}\n" for line in _image_lines(image)))


def _find(terminal: Terminal, text: str) -> dict[str, Any]:
    """What the engine knows of an image, else what its registry does."""
    from mlimg.runtime.reference import ImageReference

    reference: ImageReference | None = None
    if not text.startswith("sha256:"):
        try:
            reference = ImageReference.parse(text)
        except ValueError as error:
            raise UsageError(
                f"{printable(text)} is neither a path that is there nor an image: {printable(str(error))}"
            ) from error
    try:
        from mlimg.engine.docker import Engine

        image = Engine.connect().image(text)
        if image is not None:
            return _of_engine(image)
        absent = EngineError(f"the engine has no image {printable(text)}", hint="`docker image ls` lists its images")
    except EngineError as error:
        absent = error
    if reference is None:
        raise absent
    terminal.note(f"{absent.message}: looking in {reference.registry}")
    return _of_registry(reference)


def _of_engine(image: "EngineImage") -> dict[str, Any]:
    return {
        "id": image.id,
        "identity": image.image.identity.text,
        "platform": str(image.platform),
        "tags": list(image.repo_tags),
        "digests": list(image.repo_digests),
        "size_bytes": image.size_bytes,
        "layers": len(image.image.layers),
        **_settings(image.image),
    }


def _of_registry(reference: "ImageReference") -> dict[str, Any]:
    from mlimg.runtime.oci import Access, Registry, registry_credentials
    from mlimg.server import remote_image

    with session.ca_bundle(None) as bundle:
        access = Access(credentials=registry_credentials(os.environ, bundle), ca_bundle=bundle)
        with closing(Registry(access)) as registry:
            found = registry.image(reference, ("linux", "amd64", ""))
    image = remote_image(found)
    return {
        "id": found.manifest.digest.text,
        "identity": image.identity.text,
        "platform": "/".join(filter(None, found.platform)),
        "tags": [str(reference)],
        "digests": [str(reference.with_digest(found.manifest.digest))],
        "size_bytes": sum(layer.size_bytes for layer in found.layers),
        "layers": len(found.layers),
        **_settings(image),
    }


def _settings(image: "Image") -> dict[str, Any]:
    return {
        "labels": dict(image.labels),
        "user": image.settings.get("User"),
        "entrypoint": image.settings.get("Entrypoint"),
        "command": image.settings.get("Cmd"),
    }


def _release_lines(release: Release) -> Iterator[str]:
    yield from summary(release)
    yield ""
    rows = []
    for name, part in (("server", release.server), ("model", release.model), ("image", release.image)):
        if part is not None:
            rows += [(f"{name} digest", part.digest), (f"{name} pinned", part.pinned)]
    rows += [
        ("server version", release.server_version),
        ("server inputs", release.server_inputs),
        ("server key", release.server_key),
        *(("tag", tag) for tag in release.tags),
    ]
    yield from (f"{name:<14}  {value}" for name, value in rows)


def _image_lines(image: Mapping[str, Any]) -> Iterator[str]:
    for key, value in image.items():
        if key == "labels":
            yield from (f"{'label':<10} {printable(f'{name}={text}')}" for name, text in value.items())
        elif key == "size_bytes":
            yield f"{'size':<10} {size(value)}"
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value or "")
            yield f"{key:<10} {printable(text)}"
