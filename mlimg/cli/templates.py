"""The commands `mlimg templates` and `mlimg templates copy`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from mlimg.cli.options import Debug, Json, Quiet, terminal_of
from mlimg.runtime.errors import LocalIOError, TemplateError, printable

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def templates(context: typer.Context, json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the built-in server templates, or copy one."""
    if context.invoked_subcommand is None:
        list_templates(context)


@app.command("list")
def list_templates(context: typer.Context, json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the built-in server templates."""
    from mlimg.template import builtin_templates

    terminal = terminal_of(context)
    found = builtin_templates()
    if terminal.json:
        terminal.document(
            [
                {
                    "name": template.name,
                    "version": template.version,
                    "description": template.description,
                    "frameworks": list(template.frameworks),
                    "formats": list(template.formats),
                    "options": sorted(template.options),
                }
                for template in found
            ]
        )
        return
    width = max(len(template.name) for template in found)
    terminal.text("".join(f"{template.name:<{width}}  {template.description}\n" for template in found))


@app.command("copy")
def copy(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="A built-in template.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; it must not be there yet.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy a built-in template into a folder of yours."""
    from mlimg.template import builtin_templates

    terminal = terminal_of(context)
    known = {template.name: template for template in builtin_templates()}
    if name not in known:
        raise TemplateError(f"there is no template `{printable(name)}`", hint=f"there are {', '.join(known)}")
    try:
        shutil.copytree(known[name].folder, folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    except FileExistsError:
        raise LocalIOError(f"{folder}: is there already", hint="name a new folder") from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        # A copy gathers the failures of its files, as (source, target, reason); the first tells enough.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise LocalIOError(f"{folder}: {printable(str(reason))}") from error
    shown = folder if folder.is_absolute() else f"./{folder}"
    terminal.note(f"{folder}: a copy of {name}; write `server: {{template: {shown}}}` to use it")
    terminal.results({"template": str(folder)}, {"template": str(folder)})
