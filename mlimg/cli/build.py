"""The command `mlimg build`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from mlimg.cli import session
from mlimg.cli.options import (
    AllowPaths,
    CaBundle,
    Debug,
    Json,
    PatternOption,
    Push,
    Quiet,
    Secrets,
    Sets,
    SpecPath,
    terminal_of,
)
from mlimg.cli.releases import document, exact_name, result_lines, server_summary, summary
from mlimg.cli.written import write_text
from mlimg.runtime.errors import UsageError, printable


def build(
    context: typer.Context,
    *,
    path: SpecPath = Path(),
    pattern: PatternOption = None,
    push: Push = None,
    sets: Sets = None,
    allow_paths: AllowPaths = None,
    secrets: Secrets = None,
    ca_bundle: CaBundle = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build the server anew, layer by layer.")] = False,
    metadata_file: Annotated[
        Path | None, typer.Option("--metadata-file", metavar="FILE", help="Write the release record here, too.")
    ] = None,
    only: Annotated[
        Literal["server"] | None,
        typer.Option("--only", help="Have the server alone, without a model: with --push, what CI does once."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="oci:DIR", help="Write all images of the release into an OCI layout instead."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Take over a version that another model claimed in model.store and never finished. "
            "What is published never changes.",
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Build a release, in one of the two patterns.

    in-image: an image with the model in it. load: a server image, and a model artifact that it fetches.
    """
    from mlimg.release import build as build_release
    from mlimg.release import build_server

    terminal = terminal_of(context)
    folder = _layout_folder(output, push=push, only=only)
    laid = session.Laid(sets or (), allow_paths or (), secrets or (), ca_bundle)
    loaded = session.load(path, laid)
    if only == "server":
        if metadata_file is not None:
            raise UsageError(
                "--metadata-file: a server alone is no release", hint="take the line `server=…`, or --json"
            )
        with session.means(terminal, loaded, laid) as means:
            server = build_server(loaded, means, push=push is True, no_cache=no_cache)
        for line in server_summary(server):
            terminal.note(line)
        terminal.results({"server": exact_name(server)}, {"server": asdict(server)})
        return
    chosen = session.chosen_pattern(loaded, pattern)
    with session.means(terminal, loaded, laid) as means:
        if folder is not None:
            from mlimg.output import build_layout

            release = build_layout(loaded, means, pattern=chosen, folder=folder, no_cache=no_cache)
        else:
            release = build_release(loaded, means, pattern=chosen, push=push, no_cache=no_cache, force=force)
    if metadata_file is not None:
        write_text(metadata_file, document(release))
    for line in summary(release):
        terminal.note(line)
    terminal.results(result_lines(release), release.to_json())


def _layout_folder(output: str | None, *, push: bool | None, only: str | None) -> Path | None:
    if output is None:
        return None
    kind, _, folder = output.partition(":")
    if kind != "oci" or not folder or folder.startswith("//"):
        raise UsageError(f"--output {printable(output)}: expected oci:DIR", hint="such as --output oci:./release")
    if push or only:
        other = "--push" if push else "--only"
        raise UsageError(
            f"--output and {other} exclude each other", hint="`mlimg push DIR --to REGISTRY` carries a layout on"
        )
    return Path(folder)
