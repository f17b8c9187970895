"""Find the model to serve, fetch it where it is not here yet, and verify it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, ModelError, SpecError, printable
from mlimg.runtime.locate import Located, holds_model, locate
from mlimg.runtime.manifest import MANIFEST_NAME, ModelManifest
from mlimg.runtime.memory import tell_need
from mlimg.runtime.progress import Counter, Progress
from mlimg.runtime.variables import switch
from mlimg.runtime.verify import Depth, read_manifest, verify_folder

_VERIFY_MODES: Final = ("auto", "full", "off")


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that is on this machine, complete and verified: what a handler may load."""

    folder: Path
    manifest: ModelManifest | None  # None: a folder without `mlimg.manifest`, served with a warning
    source: str  # the pinned URI it came from, or the folder where it was found
    fetched_bytes: int
    seconds: float
    cache_hit: bool
    held: int | None = None  # the descriptor that says that a fetched version is in use (`cache.use`)


def prepare(environ: Mapping[str, str], progress: Callable[[Progress], None], stop: Event) -> PreparedModel:
    """Bring the one model that `environ` names to this machine.

    `progress` is called from several threads. When `stop` is set, raises Stopped within two seconds. Raises SpecError,
    ModelError, CredentialsError, RemoteError, RemoteTemporaryError, IntegrityError, ConflictError and LocalIOError.
    """
    return prepare_located(locate(environ), environ, progress, stop)


def prepare_located(
    located: Located, environ: Mapping[str, str], progress: Callable[[Progress], None], stop: Event
) -> PreparedModel:
    """Bring one of the models that `locate_all` found to this machine. Raises as `prepare`."""
    started = time.monotonic()
    mode = environ.get("MLIMG_VERIFY") or "auto"
    if mode not in _VERIFY_MODES:
        raise SpecError(f"MLIMG_VERIFY={printable(mode)[:100]} is none of {', '.join(_VERIFY_MODES)}")
    if located.kind == "remote" and located.uri is not None:
        # Only now: HTTP and what else a fetch takes weighs 3 MiB, of which a model that is here needs nothing.
        from mlimg.runtime.bring import bring_to, fetch_places  # noqa: PLC0415

        return bring_to(located.uri, fetch_places(environ), environ, progress, stop=stop)
    manifest = _verified(located, mode, environ, progress, stop)
    seconds = time.monotonic() - started
    assert located.folder is not None  # noqa: S101 (only what is remote has none)
    return PreparedModel(located.folder, manifest, located.source, 0, seconds, cache_hit=True)


def _verified(
    located: Located, mode: str, environ: Mapping[str, str], progress: Callable[[Progress], None], stop: Event
) -> ModelManifest | None:
    folder = located.folder
    assert folder is not None  # noqa: S101 (only what is remote has none)
    if not holds_model(folder):
        raise ModelError(f"{located.source}: there is no model in {folder}", hint="is the volume mounted?")
    found = read_manifest(folder)
    if found is None:
        # A claim without a manifest is a model that somebody is still writing, or never finished.
        if switch(environ, "MLIMG_REQUIRE_MANIFEST", default=False) or (folder / ".claim").exists():
            raise ModelError(f"{folder} has no {MANIFEST_NAME}: the model is incomplete", hint="publish it again")
        return None
    manifest, data = found
    tell_need(manifest)
    if located.uri and located.uri.digest and located.uri.digest != Digest.of(data):
        raise IntegrityError(f"{folder / MANIFEST_NAME} is not the one that {located.uri} names")
    depth: Depth = "digests"
    if mode == "off":
        depth = "nothing"
    elif mode == "auto" and located.kind == "image":
        depth = "sizes"  # the layers' digests were checked when the image was pulled
    verify_folder(folder, manifest, depth, Counter("verifying", manifest.size_bytes, progress).add, stop)
    return manifest
