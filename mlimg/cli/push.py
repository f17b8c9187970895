"""The command `mlimg push`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlimg.cli import session
from mlimg.cli.options import CaBundle, Debug, Json, Quiet, terminal_of
from mlimg.cli.units import size
from mlimg.runtime.errors import UsageError, printable

if TYPE_CHECKING:
    from mlimg.contents import Kind
    from mlimg.runtime.oci import Journal

# What a pipeline reads them by; `build --push` prints the same keys.
_KEYS: "dict[Kind, str]" = {
    "server image": "server",
    "model image": "model",
    "ModelPack artifact": "modelpack",
    "in-image image": "image",
}


def push(
    context: typer.Context,
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An OCI layout, as `mlimg build --output oci:DIR` writes it.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="REGISTRY[/PREFIX]", help="The registry, and what comes before repositories.")
    ],
    ca_bundle: CaBundle = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Carry an OCI layout on into a registry.

    What the registry has is not sent. A tag that never moves and stands for something else is a conflict.
    """
    from mlimg.carry import Destination, carry
    from mlimg.layout import Layout

    terminal = terminal_of(context)
    try:
        destination = Destination.parse(to)
    except ValueError as error:
        raise UsageError(f"--to {printable(to)}: {printable(str(error))}", hint="such as --to ghcr.io/team") from error
    text = str(folder).removeprefix("oci:")
    layout = Layout.open(Path(text))
    with session.access(ca_bundle) as access:
        carried = carry(layout, destination, access, terminal.reporter(), journal=_journal())
    for image in carried.images:
        terminal.note(f"{image.how:<9} {printable(str(image.reference))}  {image.kind}")
    terminal.note(f"{size(carried.moved_bytes)} moved")
    if terminal.json:
        images = [{"reference": str(image.reference), "kind": image.kind, "how": image.how} for image in carried.images]
        terminal.document({"images": images, "moved_bytes": carried.moved_bytes})
        return
    terminal.text("".join(f"{output_line(image.kind, str(image.reference))}\n" for image in carried.images))


def output_line(kind: "Kind", reference: str) -> str:
    """``key=value`` as `build --push` prints it: a model is named by the URI that servers take."""
    value = f"oci://{reference}" if kind == "model image" else reference
    return f"{_KEYS.get(kind, 'image')}={printable(value)}"


def _journal() -> "Journal | None":
    """Where an upload that is cut is noted: the layout may lie on a disk that cannot be written."""
    from mlimg.runtime.oci import Journal

    home = os.environ.get("HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
    return Journal(Path(cache) / "mlimg" / "uploads") if cache else None
