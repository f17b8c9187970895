"""The command `mlimg check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlimg.cli import session
from mlimg.cli.options import AllowPaths, Debug, Json, PatternOption, Quiet, Sets, SpecPath, terminal_of
from mlimg.cli.units import count, kind, size

if TYPE_CHECKING:
    from mlimg.material import Checked, Unlisted


def check(
    context: typer.Context,
    *,
    path: SpecPath = Path(),
    pattern: PatternOption = None,
    sets: Sets = None,
    allow_paths: AllowPaths = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the spec's JSON Schema and do nothing else.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check the spec, its template and the model's files, offline."""
    terminal = terminal_of(context)
    if schema:
        from mlimg.spec.load import json_schema

        terminal.document(json_schema())
        return
    from mlimg.material import Checked
    from mlimg.material import check as check_material

    loaded = session.load(path, session.Laid(sets=sets or (), allow_paths=allow_paths or ()))
    checked = check_material(loaded)
    material = checked.material
    found = checked.parts or (checked,)
    terminal.note(
        f"{loaded.path}: right. {material.template.name} server; {'; '.join(_found(model) for model in found)}"
    )
    for model in found:
        for said in model.detected.notes if isinstance(model, Checked) and model.detected else ():
            terminal.note(said)
    if unreachable := material.unreachable(pattern or loaded.spec.pattern):
        terminal.reporter().warn(unreachable)
    if not (pattern or loaded.spec.pattern):
        terminal.note("no pattern is chosen yet: give --pattern to `mlimg build`, or write `pattern:`")
    if terminal.json:
        terminal.document(
            {
                "spec": str(loaded.path),
                "template": material.template.name,
                **(
                    {"models": {model.loaded.spec.model.name: _document(model) for model in checked.parts}}
                    if checked.parts
                    else _document(checked)
                ),
            }
        )


def _found(checked: "Checked | Unlisted") -> str:
    """A model in words."""
    from mlimg.material import Checked

    material = checked.material
    if not isinstance(checked, Checked):
        return f"a model at {material.source}, which `mlimg plan` looks at"
    files = f"{count(len(checked.inventory.files), 'file')}, {size(checked.inventory.size_bytes)}"
    named = f"{checked.loaded.spec.model.name}: " if checked.loaded.at != "model" else ""
    return f"{named}{kind(material.framework, material.format)}, {files}"


def _document(checked: "Checked | Unlisted") -> dict[str, Any]:
    """What was found of a model, None where nobody has looked yet."""
    from mlimg.material import Checked

    inventory = checked.inventory if isinstance(checked, Checked) else None
    return {
        "framework": checked.material.framework or None,
        "format": checked.material.format or None,
        "files": len(inventory.files) if inventory else None,
        "size_bytes": inventory.size_bytes if inventory else None,
    }
