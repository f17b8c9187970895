"""A model in an object store: the objects below a prefix, or the one object of that name.

A version that mlimg published has `mlimg.manifest` there: it names the files and their digests, and nothing else that
lies there counts. Where there is none, all objects are the model, each in the state that was listed.
"""

from collections.abc import Generator, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mlimg.runtime.errors import IntegrityError, ModelError, printable
from mlimg.runtime.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, RESERVED_NAMES, ModelManifest
from mlimg.runtime.origin import RangesIgnoredError
from mlimg.runtime.stores.objects import Bucket, ObjectInfo
from mlimg.sources.address import bucket_folder
from mlimg.sources.remote import RemoteEntry, RemoteSource, Wanted, listed

if TYPE_CHECKING:
    from mlimg.runtime.oci import Access


def open_address(wanted: Wanted, access: "Access") -> RemoteSource:
    """List the model's files. Raises what `open_remote` raises."""
    scheme, name, folder = bucket_folder(wanted.address)
    address = f"{scheme}://{name}/{folder}"
    bucket = Bucket.open(address, access)
    committed = bucket.get_small(PurePosixPath(MANIFEST_NAME), MAX_MANIFEST_BYTES)
    if committed is not None:
        entries = list(_named(bucket, committed, address))
    else:
        entries = list(_all(bucket, address)) or list(_one(scheme, name, PurePosixPath(folder), access))
    return listed(wanted, access, entries, {"uri": address})


def _named(bucket: Bucket, committed: bytes, address: str) -> Iterator[RemoteEntry]:
    """The files of a version that mlimg published."""
    try:
        manifest = ModelManifest.parse(committed)
    except ValueError as error:
        raise IntegrityError(f"{address}/{MANIFEST_NAME}: {printable(str(error))[:300]}") from error
    for file in manifest.files:
        reader = _Reader(bucket, file.path, file.size_bytes)
        yield RemoteEntry(str(file.path), file.size_bytes, reader.read, file.sha256, file.sha256.text)


def _all(bucket: Bucket, address: str) -> Iterator[RemoteEntry]:
    """Every object below the prefix. Raises ModelError for a version that is not published yet."""
    for info in bucket.list():
        if str(info.path) in RESERVED_NAMES:
            raise ModelError(
                f"`{address}` holds a version that was begun and not finished: it has no {MANIFEST_NAME}",
                hint="publish it again",
            )
        yield _entry(bucket, info, str(info.path))


def _one(scheme: str, name: str, path: PurePosixPath, access: "Access") -> Iterator[RemoteEntry]:
    """The object of just that name, where there is one."""
    folder = "" if path.parent == PurePosixPath() else f"/{path.parent}"
    bucket = Bucket.open(f"{scheme}://{name}{folder}", access)
    info = bucket.head(PurePosixPath(path.name))
    if info is not None and info.size_bytes >= 0:
        yield _entry(bucket, info, path.name)


def _entry(bucket: Bucket, info: ObjectInfo, path: str) -> RemoteEntry:
    # What names a state of an object is the store's own word; it proves nothing, and says when to hash again.
    state = f"{bucket}/{info.path}:{info.size_bytes}:{info.etag}:{info.version}" if info.etag else None
    return RemoteEntry(path, info.size_bytes, _Reader(bucket, info.path, info.size_bytes, info.etag).read, None, state)


class _Reader:
    """One object, in the state that was listed."""

    def __init__(self, bucket: Bucket, path: PurePosixPath, size_bytes: int, etag: str | None = None) -> None:
        self._bucket = bucket
        self._path = path
        self._size_bytes = size_bytes
        self._etag = etag
        self._has_ranges = True

    def read(self, offset: int) -> Generator[bytes, None, None]:
        """The bytes from `offset` on; from a store that gives no parts, what is before is read and dropped."""
        if self._has_ranges:
            try:
                yield from self._bucket.read(self._path, offset, self._size_bytes - offset, etag=self._etag)
                return
            except RangesIgnoredError:
                self._has_ranges = False
        _, pieces = self._bucket.open_object(self._path, etag=self._etag)
        try:
            for piece in pieces:
                yield piece[offset:]
                offset = max(0, offset - len(piece))
        finally:
            pieces.close()
