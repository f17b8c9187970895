"""The command `mlimg build`."""

from pathlib import Path
from typing import Annotated

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
from mlimg.cli.releases import document, result_lines, summary
from mlimg.cli.written import write_text


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
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Build a release, in one of the two patterns.

    in-image: an image with the model in it. load: a server image, and a model artifact that it fetches.
    """
    from mlimg.release import build as build_release

    terminal = terminal_of(context)
    laid = session.Laid(sets or (), allow_paths or (), secrets or (), ca_bundle)
    loaded = session.load(path, laid)
    chosen = session.chosen_pattern(loaded, pattern)
    with session.means(terminal, loaded, laid) as means:
        release = build_release(loaded, means, pattern=chosen, push=push, no_cache=no_cache)
    if metadata_file is not None:
        write_text(metadata_file, document(release))
    for line in summary(release):
        terminal.note(line)
    terminal.results(result_lines(release), release.to_json())
