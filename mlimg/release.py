"""The order of steps: survey, reuse or build, publish, record; nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlimg.engine.docker import Engine
from mlimg.plan import Plan
from mlimg.record import Release
from mlimg.report import Reporter
from mlimg.runtime.oci import Access
from mlimg.spec.load import LoadedSpec
from mlimg.spec.schema import Pattern


@dataclass(frozen=True, slots=True)
class Means:
    """What the stages act with; `cli` collects it from arguments and environment."""

    access: Access  # registries: credentials, insecure hosts, CA bundle, time-outs
    report: Reporter
    connect: Callable[[], Engine] = Engine.connect  # called once, and only when an engine is needed
    secrets: Mapping[str, Path] | None = None  # id -> file, for the build
    ca_bundle: Path | None = None  # already merged with the system's roots
    build_timeout_seconds: float = 3600


@dataclass(frozen=True, slots=True)
class Checked:
    """A spec, its template, options and files, found right without looking anything up."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One line of `mlimg plan`: something that would be built, reused, mounted or uploaded."""

    action: str  # build, reuse, pack, append, mount, upload, write, conflict
    what: str
    size_bytes: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What a build would do. `repositories` are those it would write to; `origins` say where settings came from."""

    plan: Plan
    effects: tuple[Effect, ...]
    repositories: tuple[str, ...]
    origins: Mapping[str, str]


def check(loaded: LoadedSpec) -> Checked:
    """Offline: template, options, model files, formats. Raises every error of the stages it covers."""
    raise NotImplementedError


def preview(loaded: LoadedSpec, means: Means, *, pattern: Pattern, push: bool | None) -> Preview:
    """Look up, render and hash, and say what `build` would do; nothing is written anywhere."""
    raise NotImplementedError


def build(loaded: LoadedSpec, means: Means, *, pattern: Pattern, push: bool | None, no_cache: bool = False) -> Release:
    """Make the release and record it."""
    raise NotImplementedError


def render_folder(loaded: LoadedSpec, means: Means, *, pattern: Pattern, folder: Path) -> None:
    """Write a self-contained context that `docker build` accepts."""
    raise NotImplementedError
