"""Fetch a published model: download, verify and unpack at once, then one rename makes it visible, marker last.

Below the folder that is given, a version lies in ``.mlimg/<manifest digest>/``: the model's files, and
`mlimg.manifest`, which is written last and is the marker. (The folder itself may be the mount point of an empty volume,
which nothing can be renamed to.) What is not complete lies in ``.mlimg-scratch/<manifest digest>/``, one folder per
layer, and is either taken up again, after hashing it, or swept by the next fetch. A lock file beside it lets one
process of a shared volume fetch while the others wait.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from mlimg.runtime.descriptor import Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    IntegrityError,
    LocalIOError,
    MlimgError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
    Stopped,
)
from mlimg.runtime.locks import hold
from mlimg.runtime.manifest import ModelManifest
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.progress import Counter, Progress
from mlimg.runtime.reference import ModelUri
from mlimg.runtime.unpack import KnownModel, unpack
from mlimg.runtime.verify import read_manifest, verify_folder
from mlimg.runtime.version_folder import check_room, first_writable, install, is_kept, make_folder, remove, sweep

MODEL_DIGEST_LABEL: Final = "io.mlimg.model.digest"
_COMPLETE: Final = ".mlimg"
_SCRATCH: Final = ".mlimg-scratch"
_LAYERS_AT_ONCE: Final = 4
_LONGEST_PAUSE_SECONDS: Final = 15.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model that was fetched, or was here already and has been verified."""

    manifest: ModelManifest
    folder: Path
    uri: ModelUri  # pinned
    fetched_bytes: int
    seconds: float
    cache_hit: bool


def fetch(
    uri: ModelUri,
    places: Sequence[Path],
    *,
    access: Access,
    progress: Callable[[Progress], None],
    stop: threading.Event,
    patience_seconds: float = 300,
    offline: bool = False,
) -> FetchedModel:
    """Bring the model image that an ``oci`` URI names to a folder below one of `places`.

    That is where it is already, else the first that can be written.
    Temporary failures are tried again until for `patience_seconds` no byte has come. The work goes on in threads of its
    own, so that this returns soon after `stop` is set, whatever the network does: it raises Stopped. `progress` is
    called from those threads. Raises CredentialsError, RemoteError, RemoteTemporaryError, IntegrityError, ModelError
    for an image that is no model, LocalIOError.
    """
    started = time.monotonic()
    work = _Fetch(uri, places, access=access, progress=progress, patience_seconds=patience_seconds, offline=offline)
    outcome: list[tuple[ModelManifest, Path, bool] | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work.run())
        except BaseException as error:  # raised again in the thread that waits
            outcome.append(error)

    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
        if stop.is_set():
            work.interrupt()
            thread.join(1.0)  # usually it ends at once; a connection that hangs is left behind
            raise Stopped
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    manifest, folder, cache_hit = result
    seconds = time.monotonic() - started
    return FetchedModel(manifest, folder, work.uri, work.fetched_bytes, seconds, cache_hit)


class _Fetch:
    """One fetch, in the thread that `fetch` starts."""

    def __init__(
        self,
        uri: ModelUri,
        places: Sequence[Path],
        *,
        access: Access,
        progress: Callable[[Progress], None],
        patience_seconds: float,
        offline: bool,
    ) -> None:
        self.uri = uri
        self.fetched_bytes = 0
        self._places = places
        self._access = access
        self._progress = progress
        self._patience_seconds = patience_seconds
        self._offline = offline
        self._last_byte = time.monotonic()
        self._stop = threading.Event()
        self._stop_attempt = threading.Event()

    def interrupt(self) -> None:
        """Make every thread end as soon as it can."""
        self._stop.set()
        self._stop_attempt.set()

    def run(self) -> tuple[ModelManifest, Path, bool]:
        self._progress(Progress("resolving"))
        if self.uri.digest is None and not self._offline:
            self.uri = self.uri.pinned(self._patiently(self._resolve))
        if self.uri.digest is None:
            raise ModelError(f"{self.uri} has no digest and MLIMG_OFFLINE is set", hint="name the model by its digest")
        version = self.uri.digest.hex
        for place in self._places:
            folder = place / _COMPLETE / version
            if found := self._find(folder):
                return found, folder, True
        if self._offline:
            looked = ", ".join(map(str, self._places))
            raise ModelError(f"{self.uri} is in none of {looked}, and MLIMG_OFFLINE is set")
        place = first_writable(self._places)
        folder = make_folder(place / _COMPLETE) / version
        scratch = make_folder(place / _SCRATCH)
        with hold(scratch / f"{version}.lock", str(self.uri), stop=self._stop):
            if found := self._find(folder):
                return found, folder, True  # another process has fetched it meanwhile
            sweep(scratch, keep=version)
            manifest = self._patiently(partial(self._fetch, scratch=scratch / version, folder=folder))
            remove(scratch / version)
        return manifest, folder, False

    def _find(self, folder: Path) -> ModelManifest | None:
        """The complete version in `folder`, hashed again; one that is altered or cannot be read does not count."""
        try:
            found = read_manifest(folder)
            if found is None:
                return None
            counter = Counter("verifying", found[0].size_bytes, self._progress)
            verify_folder(folder, found[0], "digests", counter.add, self._stop)
        except (ModelError, IntegrityError, LocalIOError):
            return None
        return found[0]

    def _patiently(self, attempt: Callable[[Registry], _T]) -> _T:
        """Try until it works, fails for good, or no byte has come for too long."""
        pause = self._access.backoff_seconds
        while True:
            self._stop_attempt = threading.Event()
            if self._stop.is_set():
                raise Stopped
            registry = Registry(self._access, self._stop_attempt)
            try:
                return attempt(registry)
            except RemoteTemporaryError:
                if time.monotonic() - self._last_byte > self._patience_seconds:
                    raise
            finally:
                registry.close()
            if self._stop.wait(pause):
                raise Stopped
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _resolve(self, registry: Registry) -> Digest:
        found = registry.resolve(self.uri.image())
        if found is None:
            raise RemoteError(f"{self.uri} does not exist", hint="check the model's name and version")
        return found.digest

    def _fetch(self, registry: Registry, scratch: Path, folder: Path) -> ModelManifest:
        image = registry.image(self.uri.image())
        if not image.layers:
            raise ModelError(f"{self.uri} is no model: it has no layers")
        layers = make_folder(scratch / "layers")
        missing = [layer for layer in image.layers if not (layers / layer.digest.hex).is_dir()]
        check_room(scratch, sum(layer.size_bytes for layer in missing), str(self.uri))
        counter = Counter("fetching", sum(layer.size_bytes for layer in image.layers), self._progress)
        try:
            # The last layer begins with the manifest, by which the others are checked while they are written.
            *others, last = image.layers
            known = self._layer(registry, last, layers, None, counter)
            if image.labels.get(MODEL_DIGEST_LABEL, known.manifest.digest.text) != known.manifest.digest.text:
                raise IntegrityError(f"{self.uri} has the label of another model")
            tasks = []
            for layer in {layer.digest: layer for layer in others}.values():
                if is_kept(layers / layer.digest.hex, known.manifest):
                    counter.leave_out(layer.size_bytes)
                else:
                    tasks.append(partial(self._layer, registry, layer, layers, known, counter))
            _in_parallel(tasks, self._stop_attempt)
        finally:
            self.fetched_bytes += counter.done_bytes
        folders = [layers / layer.digest.hex for layer in image.layers]
        install(known.manifest, known.manifest_bytes, folders, scratch / "tree", folder)
        return known.manifest

    def _layer(
        self, registry: Registry, layer: Descriptor, layers: Path, known: KnownModel | None, counter: Counter
    ) -> KnownModel:
        """Unpack a layer into a folder that gets its name when the whole layer has been checked."""
        part, whole = layers / f"{layer.digest.hex}.part", layers / layer.digest.hex
        remove(part)
        remove(whole)
        make_folder(part)

        def pieces() -> Iterator[bytes]:
            for piece in registry.open_blob(self.uri.image(), layer):
                self._last_byte = time.monotonic()
                counter.add(len(piece))
                yield piece

        known = unpack(pieces(), part, known)
        part.rename(whole)
        return known


def _in_parallel(tasks: Sequence[Callable[[], object]], stop: threading.Event) -> None:
    """Run tasks in a few threads; an error for good stops them all. Raises the first error."""
    waiting = deque(tasks)
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            try:
                task()
            except BaseException as error:  # raised again in the thread that waits
                errors.append(error)
                if not (isinstance(error, MlimgError) and error.retry):
                    stop.set()

    threads = [threading.Thread(target=work, name="fetch-layer", daemon=True) for _ in range(_LAYERS_AT_ONCE)]
    for thread in threads[: len(tasks)]:
        thread.start()
    for thread in threads[: len(tasks)]:
        thread.join()
    if errors:
        raise errors[0]
