"""The command `mlimg plan`."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from mlimg.preview import Preview


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
    for effect in found.effects:
        amount = "" if effect.size_bytes is None else size(effect.size_bytes)
        yield f"  {effect.action:<7} {amount:>8}  {effect.what}  ({effect.why})"
    yield ""
    yield f"would write to: {', '.join(found.repositories) or 'nothing outside this machine'}"
    yield f"server inputs:  {plan.server.inputs}"
    if found.server_key:
        yield f"server key:     {found.server_key}"
    yield ""
    yield "settings:"
    width = max(map(len, found.origins), default=0)
    for key, origin in sorted(found.origins.items()):
        yield f"  {key:<{width}}  {origin}"


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
        "origins": dict(found.origins),
    }
