"""The command `mlimg verify`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlimg.cli import session
from mlimg.cli.layouts import layout_folder, named_entries
from mlimg.cli.options import CaBundle, Debug, Json, Quiet, terminal_of
from mlimg.cli.terminal import Terminal
from mlimg.cli.units import size
from mlimg.runtime.errors import UsageError, printable

if TYPE_CHECKING:
    from mlimg.runtime.reference import ImageReference, ModelUri
    from mlimg.verify import Verified


def verify(
    context: typer.Context,
    *,
    what: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE|URI|oci:DIR|DIR",
            help="An image or artifact in a registry, a model's URI, an OCI layout, or a version in a folder.",
        ),
    ],
    ca_bundle: CaBundle = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Read all that is stored of an image or model, and check it.

    Every byte is read where it is stored and compared with its digest; none is kept. The engine is not asked.
    """
    terminal = terminal_of(context)
    found = _verify(terminal, what, ca_bundle)
    terminal.note(f"{found.kind}: {found.items} read, {size(found.size_bytes)}, as published")
    terminal.results({"verified": found.reference}, asdict(found))


def _verify(terminal: Terminal, what: str, ca_bundle: Path | None) -> "Verified":
    from mlimg.layout import Layout
    from mlimg.runtime.reference import ImageReference
    from mlimg.verify import verify_image, verify_layout, verify_objects, verify_version

    report = terminal.reporter()
    if laid := layout_folder(what):
        layout = Layout.open(laid[0])
        return verify_layout(layout, named_entries(layout, laid[1]), report)
    if "://" not in what and Path(what).is_dir():
        return verify_version(Path(what), report)
    named = _named(what)
    with session.access(ca_bundle) as access:
        if isinstance(named, ImageReference):
            return verify_image(named, access, report)
        if named.scheme == "file":
            return verify_version(Path(named.path()), report, digest=named.digest)
        return verify_objects(named, access, report)


def _named(text: str) -> "ModelUri | ImageReference":
    from mlimg.runtime.reference import OBJECT_SCHEMES, ImageReference, ModelUri

    try:
        if "://" not in text:
            return ImageReference.parse(text)
        uri = ModelUri.parse(text)
        if uri.scheme == "oci":
            return uri.image()
        if uri.scheme not in {"file", *OBJECT_SCHEMES}:
            raise ValueError("models are stored at oci://, s3://, gs://, az:// and file:///")
    except ValueError as error:
        raise UsageError(
            f"{printable(text)} is neither a folder that is there, nor an image or a model: {printable(str(error))}"
        ) from error
    return uri
