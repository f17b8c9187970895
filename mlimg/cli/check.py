"""The command `mlimg check`."""

from pathlib import Path
from typing import Annotated

import typer

from mlimg.cli import session
from mlimg.cli.options import AllowPaths, Debug, Json, PatternOption, Quiet, Sets, SpecPath, terminal_of
from mlimg.cli.units import count, size


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
    inventory = checked.inventory if isinstance(checked, Checked) else None
    if inventory is not None:
        found = f"{material.framework} model in {material.format}, "
        found += f"{count(len(inventory.files), 'file')}, {size(inventory.size_bytes)}"
    else:
        found = f"a model at {material.source}, which `mlimg plan` looks at"
    terminal.note(f"{loaded.path}: right. {material.template.name} server; {found}")
    for said in checked.detected.notes if isinstance(checked, Checked) else ():
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
                "framework": material.framework or None,
                "format": material.format or None,
                "files": len(inventory.files) if inventory else None,
                "size_bytes": inventory.size_bytes if inventory else None,
            }
        )
