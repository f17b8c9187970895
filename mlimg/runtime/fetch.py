"""Fetch a published model: download and verify at once, then one rename makes it visible, marker last.

Below the folder that is given, a version lies in ``.mlimg/<digest of its URI>/``: the model's files, and
`mlimg.manifest`, which is written last and is the marker; what proves it lies beside (`proof`). (The folder itself may
be the mount point of an empty volume, which nothing can be renamed to.) What is not complete lies in
``.mlimg-scratch/<digest>/``: large files with the journal of what is here of them (`part_file`), bundles of small ones,
one folder each. It is taken up again, hashed anew, or swept by the next fetch. A lock file beside it lets one process
of a shared volume fetch while the others wait.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from mlimg.runtime.cache import VERSIONS, copies, evict, take_over, use
from mlimg.runtime.descriptor import OnBytes
from mlimg.runtime.errors import IntegrityError, LimitError, LocalIOError, ModelError, RemoteTemporaryError, Stopped
from mlimg.runtime.locks import hold
from mlimg.runtime.manifest import ModelFile, ModelManifest
from mlimg.runtime.memory import tell_need
from mlimg.runtime.oci import Access
from mlimg.runtime.origin import Origin, RemoteBundle, RemoteFile, RemoteModel
from mlimg.runtime.part_file import PartFile
from mlimg.runtime.progress import Counter, Progress
from mlimg.runtime.proof import check_version
from mlimg.runtime.ranges import Transfer, usual_limits
from mlimg.runtime.reference import ModelUri
from mlimg.runtime.stores import open_origin
from mlimg.runtime.verify import read_manifest, verify_folder
from mlimg.runtime.version_folder import (
    check_room,
    files_below,
    first_writable,
    install,
    is_kept,
    make_folder,
    move_into,
    remove,
    sweep,
)

if TYPE_CHECKING:
    from mlimg.runtime.digest import Digest

log = logging.getLogger(__name__)
_SCRATCH: Final = ".mlimg-scratch"
_LONGEST_PAUSE_SECONDS: Final = 15.0

_T = TypeVar("_T")
_Copies = dict["Digest", list[Path]]


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model that was fetched, or was here already and has been verified.

    `held` is the descriptor that says that the version is in use, where it can be said (`cache.use`).
    """

    manifest: ModelManifest
    folder: Path
    uri: ModelUri  # pinned
    fetched_bytes: int
    seconds: float
    cache_hit: bool
    held: int | None = None


def fetch(
    uri: ModelUri,
    places: Sequence[Path],
    *,
    access: Access,
    progress: Callable[[Progress], None],
    stop: threading.Event,
    patience_seconds: float = 300,
    offline: bool = False,
    share_from: Sequence[Path] = (),
    limit_bytes: int | None = None,
) -> FetchedModel:
    """Bring a published model to a folder below one of `places`.

    That is where it is already, else the first that can be written. Files that versions in `places` and `share_from`
    have are not fetched. With `limit_bytes`, versions not in use give way to the new one, those longest unused first.
    Temporary failures are tried again until for `patience_seconds` no byte has come. The work goes on in threads of its
    own, so that this returns soon after `stop` is set, whatever the network does: it raises Stopped. `progress` is
    called from those threads. Raises CredentialsError, RemoteError, RemoteTemporaryError, IntegrityError, ModelError
    for what is no model, LocalIOError.
    """
    started = time.monotonic()
    work = _Fetch(uri, places, access, progress, patience_seconds, offline, share_from, limit_bytes)
    outcome: list[_Outcome | BaseException] = []

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
            work.stop.set()
            thread.join(1.0)  # usually it ends at once; a connection that hangs is left behind
            raise Stopped
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    seconds = time.monotonic() - started
    return FetchedModel(
        result.manifest, result.folder, work.uri, work.fetched_bytes, seconds, result.cache_hit, result.held
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    manifest: ModelManifest
    folder: Path
    held: int | None
    cache_hit: bool


@dataclass(slots=True)
class _Fetch:
    """One fetch, in the thread that `fetch` starts."""

    uri: ModelUri
    places: Sequence[Path]
    access: Access
    progress: Callable[[Progress], None]
    patience_seconds: float
    offline: bool
    share_from: Sequence[Path]
    limit_bytes: int | None
    fetched_bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> _Outcome:
        self.progress(Progress("resolving"))
        origin = None if self.offline else open_origin(self.uri, self.access, self.stop)
        try:
            return self._run(origin)
        finally:
            self.stop.set()  # for whatever still hangs in the network
            if origin is not None:
                origin.close()

    def _run(self, origin: Origin | None) -> _Outcome:
        if self.uri.digest is None and origin is not None:
            self.uri = self._patiently(partial(origin.resolve, self.uri))
        if self.uri.digest is None:
            raise ModelError(f"{self.uri} has no digest and MLIMG_OFFLINE is set", hint="name the model by its digest")
        version = self.uri.digest.hex
        for place in self.places:
            if found := self._find(place / VERSIONS / version):
                return found
        if origin is None:
            looked = ", ".join(map(str, self.places))
            raise ModelError(f"{self.uri} is in none of {looked}, and MLIMG_OFFLINE is set")
        place = first_writable(self.places)
        folder = make_folder(place / VERSIONS) / version
        scratch = make_folder(place / _SCRATCH)
        with hold(scratch / f"{version}.lock", str(self.uri), stop=self.stop):
            if found := self._find(folder):
                return found  # another process has fetched it meanwhile
            sweep(scratch, keep=version)
            model = self._patiently(partial(origin.open, self.uri))
            tell_need(model.manifest)
            held = use(folder, self.stop)  # before it is there, so that nobody makes room of it when it is
            try:
                self._bring(model, place, make_folder(scratch / version), folder)
            except BaseException:
                _let_go(held)
                raise
            remove(scratch / version)
        return _Outcome(model.manifest, folder, held, cache_hit=False)

    def _find(self, folder: Path) -> _Outcome | None:
        """The complete version in `folder`, hashed again; what is altered, unproven or unreadable does not count."""
        if not os.path.isdir(folder):  # noqa: PTH112 (a folder that cannot be looked into is none, too)
            return None
        held = use(folder, self.stop)
        try:
            found = read_manifest(folder)
            if found is None:
                _let_go(held)
                return None
            check_version(folder, self.uri, *found)
            tell_need(found[0])
            counter = Counter("verifying", found[0].size_bytes, self.progress)
            verify_folder(folder, found[0], "digests", counter.add, self.stop)
        except (ModelError, IntegrityError, LimitError, LocalIOError) as error:
            log.warning("%s does not count as here: %s", folder, error)
            _let_go(held)
            return None
        return _Outcome(found[0], folder, held, cache_hit=True)

    def _patiently(self, attempt: Callable[[], _T]) -> _T:
        """Try until it works, fails for good, or has not worked for too long."""
        pause, began, told = self.access.backoff_seconds, time.monotonic(), ""
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return attempt()
            except RemoteTemporaryError as error:
                if time.monotonic() - began > self.patience_seconds:
                    raise
                if error.message != told:  # once for each reason: minutes of silence look like a process that hangs
                    told = error.message
                    log.warning("%s: tried again for up to %.0f s", told, self.patience_seconds)
            if self.stop.wait(pause):
                raise Stopped
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _bring(self, model: RemoteModel, place: Path, scratch: Path, folder: Path) -> None:
        """Put the version together in `scratch`, out of what is here and what has to come, and install it."""
        tree, parts, bundles = scratch / "tree", scratch / "files", scratch / "bundles"
        before = _set_aside(tree)
        for made in (tree, parts, bundles):
            make_folder(made)
        if self.limit_bytes is not None:
            evict(place, model.manifest.size_bytes, self.limit_bytes, keep=folder.name)
        known = _copies(model, [place, *self.places, *self.share_from], before)
        missing = self._take_over(model, known, tree)
        files = [(remote, PartFile(parts, remote.file)) for remote in missing]
        absent = [bundle for bundle in model.bundles if not self._is_here(bundle, model, known, bundles)]
        to_come = sum(size for _, part in files for _, size in part.missing())
        to_come += sum(bundle.size_bytes for bundle in absent)
        check_room(scratch, to_come, str(self.uri))
        counter = Counter("fetching", to_come, self.progress)
        jobs = [partial(_unpack, bundle, bundles) for bundle in absent]
        limits = usual_limits(self.patience_seconds, self.access.backoff_seconds)
        try:
            Transfer(files, jobs, limits=limits, on_bytes=counter.add, stop=self.stop).run()
        finally:
            self.fetched_bytes = counter.done_bytes
        for remote, part in files:
            move_into(tree, remote.file.path, part.path)
        for bundle in model.bundles:
            # Under its old name again: a process that is killed now must not leave a bundle without some of its files.
            unnamed = (bundles / bundle.name).rename(bundles / f"{bundle.name}.part")
            for path in files_below(unnamed):
                move_into(tree, path, unnamed / path)
        self._twins(model, tree)
        if model.proof is not None:
            model.proof.write(folder)
        install(model.manifest, model.manifest_bytes, tree, folder)

    def _take_over(self, model: RemoteModel, known: _Copies, tree: Path) -> list[RemoteFile]:
        """Bring files that are here already into `tree`; the others, those of one content once."""
        missing: dict[Digest, RemoteFile] = {}
        for remote in model.files:
            if not self._taken_over(remote.file, known, tree, executable=remote.executable):
                missing.setdefault(remote.file.sha256, remote)
        return list(missing.values())

    def _taken_over(self, file: ModelFile, known: _Copies, folder: Path, *, executable: bool | None) -> bool:
        target = folder / file.path
        return any(
            take_over(source, target, file, executable=executable, stop=self.stop) for source in known[file.sha256]
        )

    def _is_here(self, bundle: RemoteBundle, model: RemoteModel, known: _Copies, bundles: Path) -> bool:
        """Whether a bundle lies in `bundles`, as an earlier try left it or put together of files that are here."""
        whole = bundles / bundle.name
        # Of the one with the manifest only its digest tells whether it is what was read now.
        if bundle.is_whole(whole, self.stop) or (not bundle.has_manifest and is_kept(whole, model.manifest)):
            return True
        if bundle.files is None:
            return False
        part = _emptied(bundles, bundle)
        if not all(self._taken_over(file, known, part, executable=None) for file in bundle.files):
            return False
        if not bundle.is_whole(part, self.stop):
            return False
        part.rename(whole)
        return True

    def _twins(self, model: RemoteModel, tree: Path) -> None:
        """Give files that have their content from another file of the model what that has brought."""
        first: dict[Digest, Path] = {}
        for remote in model.files:
            target = tree / remote.file.path
            if target.exists():
                first.setdefault(remote.file.sha256, target)
        for remote in model.files:
            target = tree / remote.file.path
            if not target.exists():
                check_room(tree, remote.file.size_bytes, str(self.uri))
                source = first[remote.file.sha256]
                take_over(source, target, remote.file, executable=remote.executable, stop=self.stop)


def _let_go(held: int | None) -> None:
    """Say no longer that a version is in use."""
    if held is not None:
        os.close(held)


def _set_aside(tree: Path) -> Path:
    """What a process that was killed had put together: its files are taken over, after hashing them."""
    before = tree.with_name("before")
    remove(before)
    try:
        if tree.exists():
            tree.rename(before)
    except OSError as error:
        raise LocalIOError(f"cannot rename {tree}: {error.strerror}") from error
    return before


def _copies(model: RemoteModel, places: Sequence[Path], before: Path) -> _Copies:
    """Where the model's files may be: in what a process that was killed had put together, and in other versions."""
    wanted = [remote.file for remote in model.files]
    wanted += [file for bundle in model.bundles for file in bundle.files or ()]
    known = copies(places, wanted)
    for file in wanted:
        known[file.sha256].insert(0, before / file.path)
    return known


def _unpack(bundle: RemoteBundle, bundles: Path, on_bytes: OnBytes) -> None:
    """Unpack a bundle into a folder that gets its name when all of it has been checked."""
    part = _emptied(bundles, bundle)
    bundle.unpack(part, on_bytes)
    part.rename(bundles / bundle.name)


def _emptied(bundles: Path, bundle: RemoteBundle) -> Path:
    """The empty folder of a bundle on its way; what an earlier try left of it is no good."""
    part = bundles / f"{bundle.name}.part"
    remove(part)
    remove(bundles / bundle.name)
    return make_folder(part)
