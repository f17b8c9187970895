"""What is fetched from an object store: the files that a version's manifest names, and nothing that a listing shows."""

from collections.abc import Generator
from threading import Event, Lock

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, RemoteError
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile
from mlimg.runtime.oci.transport import Access
from mlimg.runtime.origin import RemoteModel
from mlimg.runtime.reference import ModelUri, ObjectPlace
from mlimg.runtime.stores.objects.bucket import Bucket, ObjectInfo, exactly
from mlimg.runtime.stores.objects.store import is_program, read_manifest


class ObjectOrigin:
    """Object stores, reached the way `access` says; implements `mlimg.runtime.origin.Origin`."""

    def __init__(self, access: Access, stop: Event | None = None) -> None:
        self._access = access
        self._stop = stop or Event()
        self._buckets: dict[ObjectPlace, Bucket] = {}

    def resolve(self, uri: ModelUri) -> ModelUri:
        """Pin a URI by the digest of the version's manifest. Raises RemoteError where nothing is published."""
        found = read_manifest(self._bucket(uri))
        if found is None:
            raise _unpublished(uri)
        return uri.pinned(Digest.of(found[1]))

    def open(self, uri: ModelUri) -> RemoteModel:
        """Read the manifest of a pinned model.

        Raises IntegrityError when it is not what the URI is pinned to, RemoteError where nothing is published.
        """
        bucket = self._bucket(uri)
        found = read_manifest(bucket)
        if found is None:
            raise _unpublished(uri)
        manifest, data = found
        if uri.digest is not None and Digest.of(data) != uri.digest:
            raise IntegrityError(f"{bucket}/{MANIFEST_NAME} is not the one that {uri} names")
        return RemoteModel(manifest, data, tuple(_ObjectFile(bucket, file) for file in manifest.files), ())

    def close(self) -> None:
        """Close idle connections."""
        for bucket in self._buckets.values():
            bucket.close()

    def _bucket(self, uri: ModelUri) -> Bucket:
        place = uri.place()
        if place not in self._buckets:
            self._buckets[place] = Bucket(place, self._access, self._stop)
        return self._buckets[place]


class _ObjectFile:
    """One file of a published version."""

    def __init__(self, bucket: Bucket, file: ModelFile) -> None:
        self._bucket = bucket
        self._file = file
        self._lock = Lock()
        self._info: ObjectInfo | None = None

    @property
    def file(self) -> ModelFile:
        """Its path, length and sha256."""
        return self._file

    @property
    def executable(self) -> bool:
        """Whether the file is a program: the store tells with the first bytes, and is asked where none were read."""
        with self._lock:
            if self._info is None:
                self._info = self._bucket.head(self._file.path)
            return self._info is not None and is_program(self._info)

    def read(self, offset: int, size_bytes: int) -> Generator[bytes, None, None]:
        """The file's bytes from `offset` on, in one attempt; all of them are asked for without a range."""
        if size_bytes == 0:
            return
        whole = offset == 0 and size_bytes == self._file.size_bytes
        info, pieces = self._bucket.open_object(self._file.path, offset, None if whole else size_bytes)
        self._info = info
        if info.size_bytes not in {-1, self._file.size_bytes}:
            pieces.close()
            raise IntegrityError(
                f"{self._bucket}/{self._file.path} has {info.size_bytes} bytes, its manifest says "
                f"{self._file.size_bytes}"
            )
        yield from exactly(pieces, size_bytes, f"{self._bucket}/{self._file.path}")


def _unpublished(uri: ModelUri) -> RemoteError:
    return RemoteError(
        f"{uri} is not published: there is no {MANIFEST_NAME}",
        hint="check the model's name and version; a push that was cut off is finished by running it again",
    )
