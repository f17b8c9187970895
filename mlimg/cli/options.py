"""Arguments and options that several commands take, each described once."""

from pathlib import Path
from typing import Annotated

import typer

from mlimg.cli.terminal import Terminal
from mlimg.spec.pattern import Pattern


def _set_flag(context: typer.Context, parameter: typer.CallbackParam, value: bool) -> bool:
    """Tell the terminal at once, so that a usage error further on is reported as asked."""
    if value:
        setattr(terminal_of(context), str(parameter.name), True)
    return value


def terminal_of(context: typer.Context) -> Terminal:
    """The terminal that `main` made for this process."""
    terminal = context.find_object(Terminal)
    assert terminal is not None, "main passes the terminal"  # noqa: S101 (a bug, not an input)
    return terminal


Json = Annotated[
    bool, typer.Option("--json", callback=_set_flag, is_eager=True, help="Print results and errors as JSON on stdout.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_set_flag, is_eager=True, help="Say nothing but warnings and errors.")
]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_set_flag, is_eager=True, help="Show the trace of an error.", show_default=False),
]

SpecPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="The spec, or the folder it lies in.", show_default="current folder")
]
PatternOption = Annotated[
    Pattern | None, typer.Option("--pattern", help="How the model reaches the server; wins over the spec's `pattern`.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Lay a setting over the spec, such as model.version=4. Repeatable."
    ),
]
AllowPaths = Annotated[
    list[Path] | None,
    typer.Option("--allow-path", metavar="DIR", help="Let the spec read files in this folder, too. Repeatable."),
]
Push = Annotated[
    bool | None,
    typer.Option("--push/--no-push", help="Publish everything of the release, or nothing.", show_default="store only"),
]
Secrets = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="ID=FILE", help="The file of a build secret that the spec names. Repeatable."),
]
CaBundle = Annotated[
    Path | None,
    typer.Option("--ca-bundle", metavar="FILE", help="Certificates to trust, added to the system's."),
]
