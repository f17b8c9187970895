"""Fetch the model that a URI names, in the ways that the variables of the runtime set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event

from mlimg.runtime.errors import SpecError
from mlimg.runtime.fetch import fetch
from mlimg.runtime.locate import DEFAULT_MODEL_DIR, parse_uri
from mlimg.runtime.oci import Access, registry_credentials
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.progress import Progress
from mlimg.runtime.reference import ModelUri
from mlimg.runtime.variables import switch, whole_number, words


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
    return bring_to(uri, [folder], environ, progress, stop=stop, share_from=[Path(cache)] if cache else [])


def bring_to(
    uri: ModelUri,
    places: Sequence[Path],
    environ: Mapping[str, str],
    progress: Callable[[Progress], None],
    *,
    stop: Event,
    share_from: Sequence[Path] = (),
) -> PreparedModel:
    """Bring a model to one of `places`, if it is in none of them; `share_from` is only read. Raises as `prepare`."""
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


def fetch_places(environ: Mapping[str, str]) -> list[Path]:
    """Where a fetched model may lie, best first: a cache that is named is there to be shared."""
    cache = environ.get("MLIMG_CACHE_DIR")
    model_dir = environ.get("MLIMG_MODEL_DIR") or DEFAULT_MODEL_DIR
    temporary = environ.get("TMPDIR") or "/tmp"  # noqa: S108 (the folder's own default, not a file's name)
    return [Path(place) for place in ((cache, model_dir, temporary) if cache else (model_dir, "/cache", temporary))]
