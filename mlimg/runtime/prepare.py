"""Find the model to serve, fetch it where it is not here yet, and verify it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, ModelError, SpecError, printable
from mlimg.runtime.fetch import fetch
from mlimg.runtime.locate import DEFAULT_MODEL_DIR, Located, holds_model, locate, parse_uri
from mlimg.runtime.manifest import MANIFEST_NAME, ModelManifest
from mlimg.runtime.memory import tell_need
from mlimg.runtime.oci import Access, registry_credentials
from mlimg.runtime.progress import Counter, Progress
from mlimg.runtime.reference import ModelUri
from mlimg.runtime.variables import switch, whole_number, words
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
        return _fetched(located.uri, fetch_places(environ), environ, progress, stop=stop)
    manifest = _verified(located, mode, environ, progress, stop)
    seconds = time.monotonic() - started
    assert located.folder is not None  # noqa: S101 (only what is remote has none)
    return PreparedModel(located.folder, manifest, located.source, 0, seconds, cache_hit=True)


def access_from(environ: Mapping[str, str]) -> Access:
    """How the variables of the runtime say that registries are reached."""
    named = environ.get("MLIMG_CA_BUNDLE")
    bundle = Path(named) if named else None
    insecure = frozenset(words(environ, "MLIMG_INSECURE_REGISTRIES"))
    return Access(registry_credentials(environ, bundle), insecure, bundle, environ=environ)


def bring(
    text: str, folder: Path, environ: Mapping[str, str], progress: Callable[[Progress], None], stop: Event
) -> PreparedModel:
    """Bring the model that a URI names under `folder`, and nowhere else; what a cache has of it need not be fetched.

    Raises SpecError for a URI that nothing is fetched from, and as `prepare`.
    """
    uri = parse_uri(text)
    if uri.scheme == "file":
        raise SpecError(f"{uri}: a model in a folder is used in place, not fetched")
    cache = environ.get("MLIMG_CACHE_DIR")
    return _fetched(uri, [folder], environ, progress, stop=stop, share_from=[Path(cache)] if cache else [])


def fetch_places(environ: Mapping[str, str]) -> list[Path]:
    """Where a fetched model may lie, best first: a cache that is named is there to be shared."""
    cache = environ.get("MLIMG_CACHE_DIR")
    model_dir = environ.get("MLIMG_MODEL_DIR") or DEFAULT_MODEL_DIR
    temporary = environ.get("TMPDIR") or "/tmp"  # noqa: S108 (the folder's own default, not a file's name)
    return [Path(place) for place in ((cache, model_dir, temporary) if cache else (model_dir, "/cache", temporary))]


def _fetched(
    uri: ModelUri,
    places: Sequence[Path],
    environ: Mapping[str, str],
    progress: Callable[[Progress], None],
    *,
    stop: Event,
    share_from: Sequence[Path] = (),
) -> PreparedModel:
    limit_gib = whole_number(environ, "MLIMG_CACHE_LIMIT_GIB", 0, 0, 1_000_000)
    model = fetch(
        uri,
        places,
        access=access_from(environ),
        progress=progress,
        stop=stop,
        patience_seconds=whole_number(environ, "MLIMG_FETCH_TIMEOUT_SECONDS", 300, 0, 86_400),
        offline=switch(environ, "MLIMG_OFFLINE", default=False),
        share_from=share_from,
        limit_bytes=limit_gib * 2**30 or None,
    )
    return PreparedModel(
        model.folder,
        model.manifest,
        str(model.uri),
        model.fetched_bytes,
        model.seconds,
        model.cache_hit,
        model.held,
    )


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
