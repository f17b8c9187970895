"""Publishing into an object store: ``PREFIX/<name>/<version>/`` holds the model's files as they are.

`.claim` is created first and names the manifest that is coming, then the files are sent, then `mlimg.manifest` is
created, which makes the version exist (`docs/model-artifact.md`). The claim keeps two writers from mixing their files.
A run that was killed is finished by the next one: what is there is known by its size and the sha256 that went with it.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from threading import Event, Lock
from typing import BinaryIO, Final

from mlimg.runtime.descriptor import OnBytes, ignore_bytes
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import (
    ConflictError,
    IntegrityError,
    LocalIOError,
    MlimgError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
    Stopped,
    printable,
)
from mlimg.runtime.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, ModelFile, ModelManifest
from mlimg.runtime.oci.transport import Access
from mlimg.runtime.reference import ModelUri, ObjectPlace
from mlimg.runtime.stores import ModelPayload, PublishedModel, StoredModel, different, is_executable
from mlimg.runtime.stores.objects.bucket import PART_BYTES, Bucket, ObjectInfo

CLAIM: Final = PurePosixPath(".claim")
MANIFEST: Final = PurePosixPath(MANIFEST_NAME)
# What goes with a file. Letters and digits alone: Azure takes no `-`, and proxies drop what has a `_`.
SHA256: Final = "mlimgsha256"
EXECUTABLE: Final = "mlimgexecutable"
_FILES_AT_ONCE: Final = 4
_PARTS_AT_ONCE: Final = 8  # of all files together
_CLAIM_BYTES: Final = 4096
_CHECK_SECONDS: Final = 1.0


class ObjectStore:
    """A prefix of a bucket, with models. With `force` a claim that never got its manifest gives way to another."""

    def __init__(self, place: ObjectPlace, access: Access, *, force: bool = False) -> None:
        self._place = place
        self._access = access
        self._force = force

    def place(self, name: str, version: str) -> ObjectPlace:
        """Where a version's files are."""
        return self._place / name / version

    def published(self, name: str, version: str) -> PublishedModel | None:
        """The version as it is published, None where there is none; only its manifest is read."""
        bucket = Bucket(self.place(name, version), self._access)
        with closing(bucket):
            return _published(bucket, name, version)

    def publish(self, payload: ModelPayload, *, on_bytes: OnBytes = ignore_bytes) -> StoredModel:
        """Publish a model: claim, files, manifest."""
        manifest = payload.manifest
        data = manifest.to_bytes()
        digest = Digest.of(data)
        place = self.place(manifest.name, manifest.version)
        stop = Event()
        bucket = Bucket(place, self._access, stop)
        uri = ModelUri(place.scheme, place.location, digest)
        with closing(bucket):
            if existing := _published(bucket, manifest.name, manifest.version):
                if existing.manifest_digest != digest:
                    raise different(existing.manifest, str(place))
                _check_sizes(bucket, manifest)
                _abort_uploads(bucket)
                return StoredModel(uri, 0, manifest.size_bytes, existed=True)
            for file in manifest.files:
                bucket.check_key(file.path)
            claim = _Claim(bucket, digest)
            claim.make(force=self._force)
            if self._force:
                _remove_others(bucket, manifest)
            sending = _Sending(bucket, payload, claim, on_bytes, stop)
            sent_bytes = sending.run()
            if self._force:
                sending.check()
            claim.check()
            _commit(bucket, data)
            try:
                claim.check()
            except ConflictError:
                bucket.delete(MANIFEST)  # whoever took the claim over may have seen none, and be writing its files
                raise
            _abort_uploads(bucket)
        return StoredModel(uri, sent_bytes, manifest.size_bytes - sent_bytes, existed=False)


def read_manifest(bucket: Bucket) -> tuple[ModelManifest, bytes] | None:
    """The manifest of a version, None where there is none: then the version does not exist. Raises IntegrityError."""
    data = bucket.get_small(MANIFEST, MAX_MANIFEST_BYTES)
    if data is None:
        return None
    try:
        return ModelManifest.parse(data), data
    except ValueError as error:
        raise IntegrityError(f"{bucket}/{MANIFEST}: {printable(str(error))[:300]}") from error


def _published(bucket: Bucket, name: str, version: str) -> PublishedModel | None:
    found = read_manifest(bucket)
    if found is None:
        return None
    manifest, data = found
    if (manifest.name, manifest.version) != (name, version):
        raise ConflictError(f"{bucket} holds {manifest.name} {manifest.version}")
    digest = Digest.of(data)
    return PublishedModel(manifest, digest, ModelUri(bucket.place.scheme, bucket.place.location, digest))


def _check_sizes(bucket: Bucket, manifest: ModelManifest) -> None:
    """Raise IntegrityError where a published version has lost a file, or part of one."""
    with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="head") as threads:
        found = threads.map(lambda file: (file, bucket.head(file.path)), manifest.files)
        for file, info in found:
            if info is None or info.size_bytes != file.size_bytes:
                raise IntegrityError(
                    f"{bucket}/{file.path} is missing or has another size than when it was published",
                    hint="raise model.version; what reads this version will be refused",
                )


def _abort_uploads(bucket: Bucket) -> None:
    """Abort what runs that were killed have left of a version's files, now that all of them are there.

    Nobody needs an upload any more: one of the same model that is alive fails, and finds the file that it was sending.
    """
    with suppress(MlimgError):  # the version is published; not every store and not every account can do this
        bucket.abort_uploads()


class _Claim:
    """A version's `.claim`, which is to be this model's from before the first file until after the manifest.

    Two that write at the same moment, one of them by force, do not both succeed: each writes its own mark first, the
    one its claim, the other its manifest, and looks for the other's mark then (Dekker's algorithm).
    """

    def __init__(self, bucket: Bucket, digest: Digest) -> None:
        self._bucket = bucket
        self._line = f"{digest}\n".encode()

    def make(self, *, force: bool) -> None:
        """Make the version this model's, or find that it is; with `force` although another claimed it.

        Raises ConflictError where it stays the other's, RemoteError for a store that lies.
        """
        created, found = self._create()
        if force and found not in {None, self._line}:
            self._bucket.delete(CLAIM)
            created, found = self._create()
            if found == self._line and self._bucket.get_small(MANIFEST, MAX_MANIFEST_BYTES) is not None:
                # Not one of its files was touched, and nobody reads a claim beside a manifest.
                raise ConflictError(
                    f"{self._bucket} was finished by the other that claimed it", hint="raise model.version"
                )
        if found != self._line:
            raise ConflictError(
                f"{self._bucket} is claimed by another model that was never finished, or is being written now",
                hint="raise model.version, or take it over with `mlimg build --force` if nobody finishes it",
            )
        if created and self._bucket.put_small_new(CLAIM, self._line):
            # Without that, two writers would mix their files under one manifest, and a published version could change.
            self._bucket.delete(CLAIM)
            raise RemoteError(
                f"{self._bucket}: this store ignores `If-None-Match`, so that it cannot keep two writers apart",
                hint="publish to a store that creates objects atomically, to a registry (oci://) or a folder",
            )

    def check(self) -> None:
        """Raise ConflictError where the claim is no longer ours."""
        if self._bucket.get_small(CLAIM, _CLAIM_BYTES) != self._line:
            raise ConflictError(
                f"{self._bucket}: somebody removed or replaced {CLAIM} while the files were sent",
                hint="nothing was published here; raise model.version, or see who else publishes it",
            )

    def _create(self) -> tuple[bool, bytes | None]:
        """Whether this call created the claim, and what it says now."""
        for last in (False, True):
            created = self._bucket.put_small_new(CLAIM, self._line)
            found = self._bucket.get_small(CLAIM, _CLAIM_BYTES)
            if found is not None or last:
                break  # else another writer was at it and gave up: stores answer 409 then
        return created, found


def _remove_others(bucket: Bucket, manifest: ModelManifest) -> None:
    """Remove what an abandoned model left, but for what is ours as well."""
    ours = {file.path: file for file in manifest.files}
    for path in [found.path for found in bucket.list() if found.path not in {CLAIM, MANIFEST}]:
        found = bucket.head(path) if path in ours else None
        if found is None or not is_file(found, ours[path]):
            bucket.delete(path)


def _commit(bucket: Bucket, data: bytes) -> None:
    """Create the manifest, and read it back: the answer may have been lost, or another may have been first."""
    for last in (False, True):
        bucket.put_small_new(MANIFEST, data)
        found = bucket.get_small(MANIFEST, MAX_MANIFEST_BYTES)
        if found is not None or last:
            break
    if found != data:
        raise ConflictError(f"{bucket}: another manifest was published meanwhile", hint="raise model.version")


@dataclass
class _Sending:
    """Files on their way, a few at a time, the largest first."""

    bucket: Bucket
    payload: ModelPayload
    claim: _Claim
    on_bytes: OnBytes
    stop: Event

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._sent_bytes = 0
        self._lost: ConflictError | None = None
        self._over = Event()

    def run(self) -> int:
        """Send what is missing; gives the bytes sent. Raises the first error, when the others have stopped."""
        files = sorted(self.payload.manifest.files, key=lambda file: -file.size_bytes)
        at_once = min(_FILES_AT_ONCE, len(files))
        connections = _PARTS_AT_ONCE // at_once
        with ThreadPoolExecutor(at_once + 1, thread_name_prefix="send") as threads:
            threads.submit(self._watch)
            try:
                tasks = [threads.submit(self._send, file, connections) for file in files]
                done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
                errors = [error for task in done if (error := task.exception()) is not None]
                if errors:
                    raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
            except BaseException:
                self.stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                self._over.set()
        return self._sent_bytes

    def _watch(self) -> None:
        """Look after the claim: whoever was taken over is to stop writing into what is another's.

        obstore takes the pieces of a file in a thread of its own, where nothing else can be asked of it.
        """
        while not self._over.wait(_CHECK_SECONDS):
            try:
                self.claim.check()
            except ConflictError as error:
                self._lost = error
                return
            except (MlimgError, Stopped):
                continue  # those that send will see, too

    def check(self) -> None:
        """Raise ConflictError where a file is not ours after all: whoever was taken over had still been sending."""
        with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="head") as threads:
            files = self.payload.manifest.files
            for file, is_there in zip(files, threads.map(self._is_there, files), strict=True):
                if not is_there:
                    raise self._replaced(file)

    def _replaced(self, file: ModelFile) -> ConflictError:
        return ConflictError(
            f"{self.bucket}/{file.path} was written by somebody else meanwhile",
            hint="another run publishes this version: wait until it has ended, then run again",
        )

    def _send(self, file: ModelFile, connections: int) -> None:
        there = self.bucket.head(file.path)
        if there is not None and is_file(there, file):
            return
        with self.payload.open(file.path) as source:
            if file.size_bytes > PART_BYTES:
                self.claim.check()  # what comes in several parts replaces whatever another put there
            metadata = {SHA256: file.sha256.hex, **({EXECUTABLE: "1"} if is_executable(source) else {})}
            try:
                written = self.bucket.put_file(
                    file.path,
                    self._pieces(source, file),
                    file.size_bytes,
                    metadata=metadata,
                    connections=connections,
                    new=there is None,
                )
            except (RemoteError, RemoteTemporaryError):
                # The last answer may have been lost when all was done.
                if not self._is_there(file):
                    raise
                written = True
        if not written and not self._is_there(file):
            raise self._replaced(file)
        with self._lock:
            self._sent_bytes += file.size_bytes

    def _is_there(self, file: ModelFile) -> bool:
        """Whether this file was sent whole: an ETag would not tell, what mlimg itself wrote beside it does."""
        found = self.bucket.head(file.path)
        return found is not None and is_file(found, file)

    def _pieces(self, source: BinaryIO, file: ModelFile) -> Iterator[bytes]:
        """The file's bytes, which must be those that were packed. Raises ModelError before the last of them counts."""
        sha256, size_bytes = hashlib.sha256(), 0
        try:
            while piece := source.read(READ_SIZE_BYTES):
                sha256.update(piece)
                size_bytes += len(piece)
                if self._lost is not None:
                    raise self._lost
                yield piece
                with self._lock:
                    self.on_bytes(len(piece))
        except OSError as error:
            raise LocalIOError(f"cannot read `{file.path}`: {error.strerror}") from error
        if size_bytes != file.size_bytes or sha256.hexdigest() != file.sha256.hex:
            raise ModelError(
                f"`{file.path}` changed while it was published", hint="run again when nothing writes to it"
            )


def is_file(found: ObjectInfo, file: ModelFile) -> bool:
    """Whether an object says to be this very file."""
    said = {name.lower(): value for name, value in found.metadata.items()}
    return found.size_bytes == file.size_bytes and said.get(SHA256) == file.sha256.hex


def is_program(found: ObjectInfo) -> bool:
    """Whether an object was a program when it was published."""
    return EXECUTABLE in {name.lower() for name in found.metadata}
