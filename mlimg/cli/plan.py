"""The command `mlimg plan`."""

import json as json_text
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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
    Sets,
    SpecPath,
    terminal_of,
)
from mlimg.cli.units import size
from mlimg.runtime.errors import printable

if TYPE_CHECKING:
    from mlimg.preview import Effect, Preview

VALUE_WIDTH: Final = 50  # of the column; a longer value pushes its origin to the right


def plan(
    context: typer.Context,
    *,
    path: SpecPath = Path(),
    pattern: PatternOption = None,
    push: Push = None,
    sets: Sets = None,
    allow_paths: AllowPaths = None,
    ca_bundle: CaBundle = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what a build would do; nothing is written.

    With every size, every repository that would be written to, and every setting and where it comes from.
    """
    from mlimg.preview import preview

    terminal = terminal_of(context)
    laid = session.Laid(sets or (), allow_paths or (), ca_bundle=ca_bundle)
    loaded = session.load(path, laid)
    chosen = session.chosen_pattern(loaded, pattern)
    with session.means(terminal, loaded, laid) as means:
        found = preview(loaded, means, pattern=chosen, push=push)
    if terminal.json:
        terminal.document(_document(found))
    else:
        terminal.text("".join(f"{line}\n" for line in _lines(found)))


def _lines(found: "Preview") -> Iterator[str]:
    plan = found.plan
    yield f"{plan.pattern.value} release of {plan.model.name}:{plan.model.version} for {plan.server.platform}"
    yield ""
    width = max(len(effect.what) for effect in found.effects)
    for effect in found.effects:
        yield f"  {effect.action:<7} {_amount(effect):>8}  {effect.what:<{width}}  {effect.why}"
    yield ""
    yield f"would write to: {', '.join(found.repositories) or 'nothing outside this machine'}"
    yield f"server inputs:  {plan.server.inputs}"
    if found.server_key:
        yield f"server key:     {found.server_key}"
    yield ""
    yield "settings:"
    rows = [(key, _written(setting.value), setting.origin) for key, setting in plan.settings.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for key, value, origin in rows:
        yield f"  {key:<{widths[0]}}  {value:<{min(widths[1], VALUE_WIDTH)}}  {origin}"


def _amount(effect: "Effect") -> str:
    """What would be moved, where that can be known before."""
    return "nothing" if effect.size_bytes == 0 else "" if effect.size_bytes is None else size(effect.size_bytes)


def _written(value: object) -> str:
    """A value as the spec would have it: text as it is, all else as JSON, which is YAML too."""
    return printable(value if isinstance(value, str) else json_text.dumps(value, ensure_ascii=False))


def _document(found: "Preview") -> dict[str, Any]:
    plan = found.plan
    return {
        "pattern": plan.pattern.value,
        "platform": str(plan.server.platform),
        "image": str(plan.image),
        "server": str(plan.server.image),
        "model": f"{plan.model.name}:{plan.model.version}",
        "server_inputs": plan.server.inputs.text,
        "server_key": found.server_key or None,
        "effects": [asdict(effect) for effect in found.effects],
        "repositories": list(found.repositories),
        "settings": {key: asdict(setting) for key, setting in plan.settings.items()},
    }
