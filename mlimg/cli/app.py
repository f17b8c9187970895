"""The commands, each in its own module; they import what they need when they run, so that help comes at once."""

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Final

import typer

from mlimg.cli.options import terminal_of

COMMANDS: Final = (
    "init",
    "check",
    "plan",
    "build",
    "push",
    "run",
    "predict",
    "inspect",
    "verify",
    "render",
    "templates",
    "doctor",
    "clean",
)


def application(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command line. Of the commands only the one that `arguments` begin with is imported, where they do."""
    app = typer.Typer(
        name="mlimg",
        help="Build inference images from a trained model: the model in the image, or loaded by the server at start.",
        add_completion=False,
        rich_markup_mode=None,  # rich would double the time that --help takes
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(mlimg)
    asked = arguments[0] if arguments else ""
    for name in [asked] if asked in COMMANDS else COMMANDS:
        module = import_module(f"mlimg.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def _version(context: typer.Context, asked: bool) -> None:
    if asked:
        from importlib.metadata import version as package_version

        terminal_of(context).text(f"mlimg {package_version('mlimg')}\n")
        raise typer.Exit


def mlimg(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Build inference images from a trained model: the model in the image, or loaded by the server at start."""
