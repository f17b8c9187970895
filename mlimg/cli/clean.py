"""The command `mlimg clean`."""

from pathlib import Path
from typing import Annotated

import typer

from mlimg.cli import session
from mlimg.cli.options import Debug, Json, Quiet, SpecPath, terminal_of
from mlimg.cli.units import count, size
from mlimg.runtime.errors import EngineError, MlimgError
from mlimg.temporary import temporary_root


def clean(
    context: typer.Context,
    *,
    path: SpecPath = Path(),
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would go; remove nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Remove what earlier runs left behind.

    Untagged images of ours, names of bases that moved on, keys of servers that no name has any more, scratch of
    runs that were killed, and replaced models of the local store.
    """
    from mlimg.clean import engine_leftovers, replaced_models, scratch
    from mlimg.engine.docker import Engine
    from mlimg.run import containers_of

    terminal = terminal_of(context)
    folder = session.spec_folder(path)
    leftovers = list(scratch(folder, temporary_root()))
    try:
        engine = Engine.connect()
        leftovers += engine_leftovers(engine)
        if containers_of(engine, folder):
            terminal.note("a container of this spec runs: replaced models stay, it may have one open")
        else:
            leftovers += replaced_models(folder)
    except EngineError as error:
        terminal.say(f"warning: images and replaced models stay: {error.message}")
    removed = []
    for leftover in leftovers:
        try:
            if not dry_run:
                leftover.remove()
        except MlimgError as error:
            terminal.say(f"warning: {leftover.what} stays: {error.message}")
            continue
        removed.append(leftover)
        terminal.note(f"{'would remove' if dry_run else 'removed'} {leftover.what}, {size(leftover.size_bytes)}")
    total = sum(leftover.size_bytes for leftover in removed)
    terminal.note(f"{count(len(removed), 'thing')}, at most {size(total)}" if removed else "nothing is left behind")
    if terminal.json:
        terminal.document(
            {
                "removed": [{"what": leftover.what, "size_bytes": leftover.size_bytes} for leftover in removed],
                "size_bytes": total,
                "dry_run": dry_run,
            }
        )
