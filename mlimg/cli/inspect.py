"""The command `mlimg inspect`."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlimg.cli import session
from mlimg.cli.layouts import layout_folder, named_entries
from mlimg.cli.options import Debug, Json, Quiet, terminal_of
from mlimg.cli.releases import summary
from mlimg.cli.terminal import Terminal
from mlimg.cli.units import size
from mlimg.record import Release, read_record
from mlimg.runtime.errors import EngineError, UsageError, printable
from mlimg.runtime.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from mlimg.contents import Contents
    from mlimg.engine.docker import EngineImage
    from mlimg.runtime.manifest import ModelManifest
    from mlimg.runtime.reference import ImageReference, ModelUri


def inspect(
    context: typer.Context,
    *,
    what: Annotated[
        str,
        typer.Argument(
            metavar="PATH|IMAGE|URI|oci:DIR",
            help="A spec or its folder, for the release that was built there; an image or artifact; a model's URI, or "
            "its version in a folder; or an OCI layout.",
            show_default="current folder",
        ),
    ] = ".",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the last release, or what an image or store holds.

    Nothing is pulled. An image is looked up in the engine, then in its registry; oci://REFERENCE in the latter alone.
    """
    terminal = terminal_of(context)
    if layout := layout_folder(what):
        _show_layout(terminal, *layout)
        return
    if (Path(what) / MANIFEST_NAME).exists():
        _show(terminal, _of_folder(Path(what)))
        return
    if Path(what).exists():
        release = read_record(session.spec_folder(Path(what)))
        if terminal.json:
            terminal.document(release.to_json())
        else:
            terminal.text("".join(f"{line}\n" for line in _release_lines(release)))
        return
    _show(terminal, _find(terminal, what))


def _show(terminal: Terminal, *images: Mapping[str, Any]) -> None:
    if terminal.json:
        terminal.document(images[0])
        return
    terminal.text("\n".join("".join(f"{line}\n" for line in _image_lines(image)) for image in images))


def _show_layout(terminal: Terminal, folder: Path, name: str) -> None:
    from mlimg.contents import read_contents
    from mlimg.layout import Layout

    layout = Layout.open(folder)
    found = [
        {"name": entry.name, **_of_contents(read_contents(layout, entry.descriptor, entry.name or "the layout"))}
        for entry in named_entries(layout, name)
    ]
    if terminal.json and not name:
        terminal.document({"layout": str(folder), "images": found})
    else:
        _show(terminal, *found)


def _find(terminal: Terminal, text: str) -> dict[str, Any]:
    """What the engine knows of an image, else what its registry does."""
    from mlimg.runtime.reference import ImageReference, ModelUri

    reference: ImageReference | None = None
    if not text.startswith("sha256:"):
        try:
            if "://" in text:
                return _of_uri(ModelUri.parse(text))
            reference = ImageReference.parse(text)
        except ValueError as error:
            raise UsageError(
                f"{printable(text)} is neither a path that is there, nor an image or a model: {printable(str(error))}"
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
    from mlimg.contents import kind_of, model_facts, server_facts

    labels = image.image.labels
    model, server = model_facts(labels), server_facts(labels)
    return {
        "kind": kind_of(labels),
        "id": image.id,
        "identity": image.image.identity.text,
        "platform": str(image.platform),
        "tags": list(image.repo_tags),
        "digests": list(image.repo_digests),
        "size_bytes": image.size_bytes,
        "layers": len(image.image.layers),
        "model": model.to_json() if model else None,
        "server": server.to_json() if server else None,
        **_settings(labels, image.image.settings),
    }


def _of_registry(reference: "ImageReference") -> dict[str, Any]:
    from mlimg.contents import RegistryReader, read_contents
    from mlimg.runtime.oci import Registry

    with session.access() as access, closing(Registry(access)) as registry:
        descriptor, _ = registry.manifest(reference)
        found = read_contents(RegistryReader(registry, reference), descriptor, str(reference))
    shown = _of_contents(found)
    names = {"tags": [str(reference)], "digests": [str(reference.with_digest(found.manifest.digest))]}
    return {key: names.get(key, value) for key, value in shown.items()}


def _of_uri(uri: "ModelUri") -> dict[str, Any]:
    from threading import Event

    from mlimg.runtime.reference import OBJECT_SCHEMES
    from mlimg.runtime.stores import open_origin

    if uri.scheme == "oci":
        return _of_registry(uri.image())
    if uri.scheme == "file":
        return _of_folder(Path(uri.path()), uri)
    if uri.scheme not in OBJECT_SCHEMES:
        raise ValueError("models are stored at oci://, s3://, gs://, az:// and file:///")
    with session.access() as access, closing(open_origin(uri, access, Event())) as origin:
        found = origin.open(uri)
        return _of_manifest(uri, found.manifest, found.manifest_bytes)


def _of_folder(folder: Path, asked: "ModelUri | None" = None) -> dict[str, Any]:
    from mlimg.runtime.reference import ModelUri
    from mlimg.verify import published_in

    uri = asked or ModelUri("file", str(folder.absolute()))
    return _of_manifest(uri, *published_in(folder, uri.digest))


def _of_manifest(uri: "ModelUri", manifest: "ModelManifest", data: bytes) -> dict[str, Any]:
    """A model in a store that keeps its files as they are."""
    from mlimg.contents import manifest_facts
    from mlimg.runtime.digest import Digest

    digest = Digest.of(data)
    return {
        "kind": "model",
        "id": digest.text,
        "tags": [str(replace(uri, digest=None))],
        "digests": [str(uri.pinned(digest))],
        "size_bytes": manifest.size_bytes,
        "model": manifest_facts(manifest, data).to_json(),
        "server": None,
    }


def _of_contents(found: "Contents") -> dict[str, Any]:
    shown = {
        "kind": found.kind,
        "id": found.manifest.digest.text,
        "identity": found.identity.text if found.identity else None,
        "platform": found.platform or None,
        "tags": [],
        "digests": [],
        "size_bytes": found.size_bytes,
        "layers": len(found.layers),
        "model": found.model.to_json() if found.model else None,
        "server": found.server.to_json() if found.server else None,
        **_settings(found.labels, found.settings),
    }
    return shown | ({"platforms": list(found.platforms)} if found.platforms else {})


def _settings(labels: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "labels": dict(labels),
        "user": settings.get("User"),
        "entrypoint": settings.get("Entrypoint"),
        "command": settings.get("Cmd"),
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
        elif key in {"model", "server"} and value:
            facts = {"size" if name == "size_bytes" else name: fact for name, fact in value.items()}
            for name, fact in facts.items():
                yield f"{f'{key} {name}':<22} {size(fact) if name == 'size' else printable(str(fact))}"
        elif value not in (None, []):
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{key:<10} {printable(text)}"
