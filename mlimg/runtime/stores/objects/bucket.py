"""Objects below a prefix of one bucket: listed, read in ranges, written whole or not at all.

A file is sent in parts, so that no more than a few parts are in memory, and appears when all of them have arrived.
Small control objects are created only where nothing is, which stores do in one step.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from threading import Event
from typing import Any, Final, Self, TypeVar

from mlimg.runtime.errors import LimitError, RemoteError, RemoteTemporaryError, SpecError, Stopped, printable
from mlimg.runtime.oci.transport import Access, Patience, Unavailable
from mlimg.runtime.reference import ObjectPlace
from mlimg.runtime.stores.objects.listing import Lister
from mlimg.runtime.stores.objects.reading import Opened, make_reader
from mlimg.runtime.stores.objects.refusals import translated
from mlimg.runtime.stores.objects.settings import connect

MAX_KEY_BYTES: Final = 1024  # S3 and Google count bytes, Azure characters
PART_BYTES: Final = 8 * 1024 * 1024
_MAX_PARTS: Final = 9_000  # S3 and Google stop at 10,000
_MEMORY_BYTES: Final = 64 * 1024 * 1024  # for parts of one file that are under way

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as the store tells of it. `etag` and `version` name a state of it, and prove nothing of its content."""

    path: PurePosixPath  # below the prefix
    size_bytes: int
    etag: str | None = None
    version: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)  # empty in a listing


class Bucket:
    """A prefix of a bucket. Safe to use from several threads.

    Every method raises CredentialsError, RemoteError and RemoteTemporaryError, and Stopped once `stop` is set; what
    else it raises, it says. Nothing that is raised quotes a signed address.
    """

    def __init__(self, place: ObjectPlace, access: Access, stop: Event | None = None) -> None:
        self.place = place
        self._stop = stop or Event()
        self._clients = connect(place, access)
        self._access = self._clients.access
        self._reader = make_reader(place, self._clients, self._stop)
        self._lister = Lister(place, self._clients, self._stop)

    @classmethod
    def open(cls, uri: str, access: Access, stop: Event | None = None) -> Self:
        """The prefix that ``s3://bucket/prefix``, ``gs://…`` or ``az://container/prefix`` names. Nothing is asked yet.

        Raises SpecError for another text or settings that make no sense, CredentialsError, RemoteError, LocalIOError.
        """
        try:
            place = ObjectPlace.parse(uri)
        except ValueError as error:
            raise SpecError(str(error)) from error
        return cls(place, access, stop)

    def __str__(self) -> str:
        return str(self.place)

    def close(self) -> None:
        """Close idle connections."""
        self._reader.close()
        self._lister.close()

    def list(self) -> Iterator[ObjectInfo]:
        """Every object below the prefix, but not the empty ones that stand for folders.

        Raises RemoteError for a key that no file can have.
        """
        folder: ObjectInfo | None = None
        for page in self._listed_here() if self._clients.signs else self._listed_by_obstore():
            for found in page:
                # Listings are in order, so that what stands for a folder comes right before what is in it.
                if folder is not None and not found.path.is_relative_to(folder.path):
                    yield folder
                folder = found if found.size_bytes == 0 else None
                if folder is None:
                    yield found
        if folder is not None:
            yield folder

    def _listed_here(self) -> Iterator[Sequence[ObjectInfo]]:
        marker, is_first = "", True
        while marker or is_first:
            page, marker = self._patiently(partial(self._lister.page, marker))
            is_first = False
            yield [
                ObjectInfo(self._path(found.key), found.size_bytes, found.etag)
                for found in page
                if found.key or found.size_bytes
            ]

    def _listed_by_obstore(self) -> Iterator[Sequence[ObjectInfo]]:
        import obstore  # noqa: PLC0415 (absent from servers that need none)

        stream: Any = obstore.list(self._clients.writing, chunk_size=1000)  # type: ignore[arg-type,unused-ignore]
        chunks = iter(stream)
        while True:
            self._heed_stop()
            try:
                chunk = next(chunks, None)
            except Exception as error:  # obstore's base class
                if type(error).__name__ == "InvalidPathError":
                    raise self._no_path() from None
                raise translated(f"{self}: listing", error) from None
            if chunk is None:
                return
            yield [
                ObjectInfo(PurePosixPath(meta["path"]), meta["size"], meta["e_tag"], meta["version"]) for meta in chunk
            ]

    def _path(self, key: str) -> PurePosixPath:
        """The path of a key, that of a folder without its last `/`. Raises RemoteError for what no file can have."""
        parts = key.removesuffix("/").split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
            raise self._no_path()
        return PurePosixPath(*parts)

    def _no_path(self) -> RemoteError:
        return RemoteError(
            f"{self}: a key below has an empty, `.` or `..` part or a control character",
            hint="no file can have that name: remove the object, or name another prefix",
        )

    def abort_uploads(self) -> int:
        """Abort uploads in parts that were begun below the prefix and not completed; how many.

        Of S3 alone: Azure drops such parts after a week, by itself.
        """
        if self.place.scheme != "s3" or not self._clients.signs:
            return 0
        return self._patiently(self._lister.abort_uploads)

    def head(self, path: PurePosixPath) -> ObjectInfo | None:
        """What the store knows of an object, None where there is none."""

        def ask() -> ObjectInfo | None:
            opened = self._reader.open(str(path), body=False)
            if opened is None:
                return None
            opened.pieces.close()
            return _info(path, opened)

        return self._patiently(ask)

    def open_object(
        self, path: PurePosixPath, offset: int = 0, size_bytes: int | None = None, *, etag: str | None = None
    ) -> tuple[ObjectInfo, Generator[bytes, None, None]]:
        """Open an object, or a part of it, in one attempt: what it is, and its bytes in order.

        `etag`: only this state of it. Raises RangesIgnoredError where the store gives no parts.
        """
        self._heed_stop()
        opened = self._reader.open(str(path), offset=offset, size_bytes=size_bytes, etag=etag)
        if opened is None:
            raise RemoteError(f"{self}/{path} does not exist")
        return _info(path, opened), opened.pieces

    def read(
        self, path: PurePosixPath, offset: int, size_bytes: int, *, etag: str | None = None
    ) -> Generator[bytes, None, None]:
        """Exactly `size_bytes` from `offset` on, in one attempt.

        Raises RemoteTemporaryError when the connection breaks, RangesIgnoredError where the store gives no parts.
        """
        if size_bytes == 0:
            return
        _, pieces = self.open_object(path, offset, size_bytes, etag=etag)
        yield from exactly(pieces, size_bytes, f"{self}/{path}")

    def get_small(self, path: PurePosixPath, limit_bytes: int) -> bytes | None:
        """A small object whole, None where there is none. Raises LimitError when it is larger."""

        def ask() -> bytes | None:
            opened = self._reader.open(str(path))
            if opened is None:
                return None
            data = bytearray()
            with closing(opened.pieces) as pieces:
                for piece in pieces:
                    data += piece
                    if len(data) > limit_bytes:
                        raise LimitError(f"{self}/{path} is larger than {limit_bytes} bytes")
            if opened.size_bytes >= 0 and len(data) != opened.size_bytes:
                raise RemoteTemporaryError(f"{self}/{path} ended after {len(data)} of {opened.size_bytes} bytes")
            return bytes(data)

        return self._patiently(ask)

    def put_small_new(self, path: PurePosixPath, data: bytes) -> bool:
        """Create a small object; False where one is, or where another writer is at it. It is never replaced.

        After an answer that was lost, False may speak of what this very call has created.
        """
        import obstore  # noqa: PLC0415 (absent from servers that need none)

        self._heed_stop()
        self.check_key(path)
        try:
            obstore.put(self._clients.writing, str(path), data, mode="create")  # type: ignore[arg-type,unused-ignore]
        except Exception as error:  # obstore's base class, and ValueError
            if type(error).__name__ == "AlreadyExistsError":
                return False
            raise translated(f"{self}/{path}", error) from None
        return True

    def put_file(
        self,
        path: PurePosixPath,
        chunks: Iterable[bytes],
        size_bytes: int,
        *,
        metadata: Mapping[str, str] | None = None,
        connections: int = 4,
        new: bool = False,
    ) -> bool:
        """Write an object whole, whatever is there. What `chunks` raises is raised, and nothing is written.

        A `new` one of a single part is created as `put_small_new` does: False where one is. A part that fails is sent
        again by itself. A process that is killed leaves parts that no listing shows.
        """
        import obstore  # noqa: PLC0415 (absent from servers that need none)

        self._heed_stop()
        self.check_key(path)
        failed: list[BaseException] = []

        def checked() -> Iterator[bytes]:
            try:
                for chunk in chunks:
                    self._heed_stop()
                    yield chunk
            except BaseException as error:
                failed.append(error)
                raise

        part_bytes = max(PART_BYTES, -(-size_bytes // _MAX_PARTS))
        small = size_bytes <= PART_BYTES
        try:
            obstore.put(
                self._clients.writing,  # type: ignore[arg-type,unused-ignore]
                str(path),
                b"".join(checked()) if small else checked(),
                attributes=dict(metadata or {}),
                mode="create" if small and new else "overwrite",
                use_multipart=not small,
                chunk_size=part_bytes,
                max_concurrency=max(1, min(connections, _MEMORY_BYTES // part_bytes)),
            )
        except Exception as error:  # obstore's base class, and ValueError
            if failed:
                raise failed[0] from None
            if type(error).__name__ == "AlreadyExistsError":
                return False
            raise translated(f"{self}/{path}", error) from None
        return True

    def delete(self, path: PurePosixPath) -> None:
        """Remove an object; none being there is no failure."""
        import obstore  # noqa: PLC0415 (absent from servers that need none)

        try:
            obstore.delete(self._clients.writing, str(path))  # type: ignore[arg-type,unused-ignore]
        except FileNotFoundError:
            return
        except Exception as error:  # obstore's base class, and ValueError
            raise translated(f"{self}/{path}", error) from None

    def check_key(self, path: PurePosixPath) -> None:
        """Raise LimitError for a key that stores would refuse."""
        size = len(str(self.place.prefix / path).encode())
        if size > MAX_KEY_BYTES:
            raise LimitError(
                f"`{printable(str(path))[:80]}…` makes a key of {size} bytes; object stores take {MAX_KEY_BYTES}",
                hint="shorten the names of the model's folders, or the prefix of model.store",
            )

    def _patiently(self, attempt: Callable[[], _T]) -> _T:
        def once() -> _T:
            self._heed_stop()
            try:
                return attempt()
            except RemoteTemporaryError as error:
                raise Unavailable(error.message) from None

        return Patience(self._access, self._stop).run(once)

    def _heed_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped


def exactly(pieces: Generator[bytes, None, None], size_bytes: int, what: str) -> Generator[bytes, None, None]:
    """Pass on pieces and hold them to a length. Raises RemoteTemporaryError for fewer bytes, RemoteError for more."""
    received = 0
    with closing(pieces):
        for piece in pieces:
            received += len(piece)
            if received > size_bytes:
                raise RemoteError(f"{what}: the store sends more than the {size_bytes} bytes it was asked for")
            yield piece
    if received < size_bytes:
        raise RemoteTemporaryError(f"{what}: the store sent {received} of {size_bytes} bytes")


def _info(path: PurePosixPath, opened: Opened) -> ObjectInfo:
    return ObjectInfo(path, opened.size_bytes, opened.etag, opened.version, opened.metadata)
