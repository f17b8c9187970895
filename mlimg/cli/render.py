"""The command `mlimg render`."""

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
    Quiet,
    Sets,
    SpecPath,
    terminal_of,
)


def render(
    context: typer.Context,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A new or empty folder, or an earlier render's.")
    ],
    path: SpecPath = Path(),
    pattern: PatternOption = None,
    sets: Sets = None,
    allow_paths: AllowPaths = None,
    ca_bundle: CaBundle = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a context that `docker build` builds without mlimg."""
    from mlimg.export import render_folder

    terminal = terminal_of(context)
    laid = session.Laid(sets or (), allow_paths or (), ca_bundle=ca_bundle)
    loaded = session.load(path, laid)
    chosen = session.chosen_pattern(loaded, pattern)
    with session.means(terminal, loaded, laid) as means:
        rendered = render_folder(loaded, means, pattern=chosen, folder=output)
    terminal.note(f"{output}: the whole context, {chosen.value}; its README.md has the command that builds it")
    terminal.results({"context": str(output.absolute())}, {"context": str(output.absolute()), "key": rendered.key.text})
