"""The command `mlimg doctor`."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mlimg.cli import session
from mlimg.cli.options import Debug, Json, Quiet, SpecPath, terminal_of
from mlimg.cli.units import size
from mlimg.runtime.errors import MlimgError
from mlimg.temporary import temporary_root

if TYPE_CHECKING:
    from mlimg.engine.docker import Engine
    from mlimg.spec.load import LoadedSpec

LOW_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `mend` says what to do where it is not well."""

    name: str
    well: bool
    fact: str
    mend: str = ""


def doctor(
    context: typer.Context, path: SpecPath = Path(), json: Json = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Look at all that a build needs, and say how to mend it."""
    terminal = terminal_of(context)
    findings = list(_findings(path))
    if terminal.json:
        terminal.document([asdict(finding) for finding in findings])
    else:
        terminal.text("".join(f"{line}\n" for finding in findings for line in _lines(finding)))
    worst = next((finding for finding in findings if not finding.well), None)
    if worst is not None:
        raise typer.Exit(14)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{'ok' if finding.well else 'NOT OK':<7} {finding.name:<12} {finding.fact}"
    if finding.mend:
        yield f"{'':<7} {'':<12} -> {finding.mend}"


def _findings(path: Path) -> Iterator[Finding]:
    from mlimg.engine.docker import Engine

    engine: Engine | None = None
    try:
        engine = Engine.connect()
    except MlimgError as error:
        yield Finding("engine", False, error.message, error.hint)
    else:
        info = engine.info
        yield Finding("engine", True, f"{info.version} at {info.endpoint}, {info.store} image store, {info.platform}")
    yield _plugin("buildx", "https://docs.docker.com/build/install-buildx/", needed=True)
    yield _plugin("compose", "https://docs.docker.com/compose/install/ (only mlimg's own tests need it)", needed=False)
    loaded, spec = _spec(path)
    yield spec
    if loaded is not None:
        yield from _credentials(loaded)
        if engine is not None:
            yield _base(loaded, engine)
    yield from _disk(engine)


def _plugin(name: str, where: str, *, needed: bool) -> Finding:
    from mlimg.engine.command import CommandFailed, run

    try:
        found = run(["docker", name, "version"], timeout_seconds=20)
    except CommandFailed as error:
        return Finding(name, not needed, f"missing: {error}", f"install it: {where}")
    return Finding(name, True, found.tail[-1] if found.tail else "answers")


def _spec(path: Path) -> tuple["LoadedSpec | None", Finding]:
    try:
        loaded = session.load(path, session.Laid())
    except MlimgError as error:
        absent = not path.exists() or (path.is_dir() and not (path / "mlimg.yaml").exists())
        return None, Finding("spec", absent, "none here" if absent else error.message, "`mlimg init` writes one")
    return loaded, Finding("spec", True, str(loaded.path))


def _credentials(loaded: "LoadedSpec") -> Iterator[Finding]:
    """One finding a registry that the spec names. Nothing of a credential is shown."""
    from mlimg.runtime.oci import registry_credentials
    from mlimg.runtime.reference import ImageReference

    spec = loaded.spec
    names = [spec.image, spec.server.image or spec.image, (spec.model.store or "").removeprefix("oci://")]
    named = [
        ImageReference.parse(name) for name in names if name and "://" not in name and not name.startswith((".", "/"))
    ]
    find = registry_credentials(os.environ)
    for registry in dict.fromkeys(reference.registry for reference in named):
        try:
            found = find(registry)
        except MlimgError as error:
            yield Finding("credentials", False, f"{registry}: {error.message}", error.hint)
        else:
            fact = "found" if found else "none: only what is public there can be reached"
            yield Finding("credentials", True, f"{registry}: {fact}", "" if found else f"docker login {registry}")


def _base(loaded: "LoadedSpec", engine: "Engine") -> Finding:
    from mlimg.template import find_template

    spec = loaded.spec
    try:
        template = find_template(spec.server.template, lambda text: loaded.file("server.template", text))
        written = spec.server.base or template.base
        there = engine.image(written) is not None
    except MlimgError as error:
        return Finding("base", False, error.message, error.hint)
    if there:
        return Finding("base", True, f"{written} is in the engine")
    return Finding("base", True, f"{written} is not in the engine: a build fetches it", f"docker pull {written}")


def _disk(engine: "Engine | None") -> Iterator[Finding]:
    free = {}
    scratch = temporary_root()
    try:
        free[f"scratch ({scratch})"] = shutil.disk_usage(scratch).free
    except OSError as error:
        yield Finding("disk", False, f"scratch ({scratch}): {error.strerror}", "set TMPDIR to a folder with room")
    if engine is not None and engine.info.free_bytes is not None:
        free[f"images ({engine.info.data_root})"] = engine.info.free_bytes
    for name, free_bytes in free.items():
        well = free_bytes >= LOW_BYTES
        yield Finding(
            "disk", well, f"{name}: {size(free_bytes)} free", "" if well else "`mlimg clean`, `docker system prune`"
        )
