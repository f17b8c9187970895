"""A model that is somewhere else: its files are listed, and read as streams; nothing of it is kept on this machine.

`open_remote` picks the module of the kind of place, and what that module lists is held to the rules that local models
keep, since nobody here made the names and the sizes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, LimitError, ModelError, printable
from mlimg.runtime.manifest import check_collisions, model_path
from mlimg.sources import Inventory, ModelSource, SourceFile
from mlimg.sources.address import scheme_of
from mlimg.sources.local import MAX_FILE_BYTES, MAX_FILES
from mlimg.sources.ranged import Attempt, RangedFile
from mlimg.sources.selection import Selection

if TYPE_CHECKING:
    from mlimg.runtime.oci import Access


_NOTHING: Final = Digest.of(b"")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a place: its address, the files to choose there, and what the spec says of them."""

    address: str
    selection: Selection
    sha256: Digest | None = None
    allowed: tuple[Path, ...] = ()  # folders of this machine that a registry of models may send to


@dataclass(frozen=True, slots=True)
class RemoteEntry:
    """A file as a place lists it. `read` gives its bytes from an offset to the end, in one attempt."""

    path: str
    size_bytes: int
    read: Attempt
    sha256: Digest | None = None
    fingerprint: str | None = None
    executable: bool = False


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """The files as they were when listed. It keeps no connection busy between reads."""

    files: Inventory
    entries: Mapping[PurePosixPath, RemoteEntry]
    attempts: int
    backoff_seconds: float

    def inventory(self) -> Inventory:
        """The files, sorted by path."""
        return self.files

    def open(self, path: PurePosixPath) -> BinaryIO:
        """Open one listed file, unbuffered.

        Reading raises IntegrityError for other bytes than were listed, RemoteError, RemoteTemporaryError and
        CredentialsError.
        """
        entry = self.entries[path]
        file = RangedFile(
            str(path),
            entry.size_bytes,
            entry.read,
            sha256=entry.sha256,
            attempts=self.attempts,
            backoff_seconds=self.backoff_seconds,
        )
        return cast("BinaryIO", file)  # it has all that readers of models call


def listed(wanted: Wanted, access: "Access", entries: Iterable[RemoteEntry], origin: Mapping[str, str]) -> RemoteSource:
    """Make a source of what a place lists. Raises ModelError for what cannot be a model, LimitError."""
    chosen = wanted.selection.choose(_bounded(entries, wanted.address), lambda entry: entry.path)
    places: dict[PurePosixPath, RemoteEntry] = {}
    for entry in chosen:
        try:
            path = model_path(entry.path)
        except ValueError as error:
            raise ModelError(f"model.source: {error}", hint="leave it out by model.exclude, or rename it") from None
        if path in places:
            raise ModelError(f"model.source: `{printable(entry.path)}` is listed twice")
        if entry.size_bytes > MAX_FILE_BYTES:
            size = f"`{printable(entry.path)}` has {entry.size_bytes} bytes"
            raise LimitError(
                f"{size}; a file of a model has at most {MAX_FILE_BYTES}",
                hint="save the model in shards",
            )
        if not entry.size_bytes and entry.sha256 not in {None, _NOTHING}:
            raise IntegrityError(f"`{printable(entry.path)}` is empty, and its sha256 is that of something")
        places[path] = entry
    if not places:
        raise ModelError(f"`{printable(wanted.address)}` holds no files", hint="model.source names the trained model")
    try:
        check_collisions(places)
    except ValueError as error:
        raise ModelError(f"model.source: {error}", hint="leave one of them out by model.exclude") from None
    files = tuple(
        SourceFile(path, entry.size_bytes, entry.executable, entry.fingerprint, entry.sha256)
        for path, entry in sorted(places.items(), key=lambda item: str(item[0]))
    )
    return RemoteSource(Inventory(files, dict(origin)), places, access.attempts, access.backoff_seconds)


# Modules are imported when one of their addresses is read: they bring HTTP and other people's clients with them.
_MODULES: Final[Mapping[str, str]] = {
    "https": "web",
    "http": "web",
    "s3": "bucket",
    "gs": "bucket",
    "az": "bucket",
    "oci": "image",
    "hf": "hub",
    "models": "registered",
}


def open_remote(wanted: Wanted, access: "Access") -> ModelSource:
    """List the model at an address.

    Raises ModelError, LimitError, CredentialsError, IntegrityError, RemoteError, RemoteTemporaryError, and UsageError
    where a package that the place needs is not installed.
    """
    kind: Callable[[Wanted, Access], ModelSource] = import_module(
        f"mlimg.sources.{_MODULES[scheme_of(wanted.address)]}"
    ).open_address
    return kind(wanted, access)


def _bounded(entries: Iterable[RemoteEntry], address: str) -> Iterator[RemoteEntry]:
    for number, entry in enumerate(entries, 1):
        if number > MAX_FILES:
            raise LimitError(f"`{printable(address)}` holds more than {MAX_FILES} files", hint="pack data in archives")
        yield entry
