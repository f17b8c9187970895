"""The commands, each in its own module. Those import what they need when they run, so that help comes at once."""

from typing import Annotated

import typer

from mlimg.cli import build, check, clean, doctor, init, inspect, plan, predict, render, run, templates
from mlimg.cli.options import terminal_of

app = typer.Typer(
    name="mlimg",
    help="Build inference images from a trained model: the model in the image, or loaded by the server at start.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    init.init,
    check.check,
    plan.plan,
    build.build,
    run.run,
    predict.predict,
    inspect.inspect,
    render.render,
    doctor.doctor,
    clean.clean,
):
    app.command()(command)
app.add_typer(templates.app, name="templates")


def _version(context: typer.Context, asked: bool) -> None:
    if asked:
        from importlib.metadata import version as package_version

        terminal_of(context).text(f"mlimg {package_version('mlimg')}\n")
        raise typer.Exit


@app.callback()
def mlimg(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Build inference images from a trained model: the model in the image, or loaded by the server at start."""
