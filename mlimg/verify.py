"""Whether what is stored is still what was published: every byte is read where it lies and compared with its digest.

Nothing is kept of what is read: a few pieces of a few files are in memory at a time.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Final, cast

from mlimg.contents import Reader, RegistryReader, read_contents
from mlimg.layout import Layout, LayoutEntry
from mlimg.modelpack import FILE_PATH
from mlimg.report import Reporter
from mlimg.runtime.descriptor import Descriptor
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import IntegrityError, ModelError, RemoteError, Stopped, printable
from mlimg.runtime.manifest import MANIFEST_NAME, ModelManifest
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.oci.image import is_index, parse_manifest, parse_object
from mlimg.runtime.origin import RemoteFile
from mlimg.runtime.reference import ImageReference, ModelUri
from mlimg.runtime.stores import open_origin
from mlimg.runtime.verify import read_manifest
from mlimg.runtime.verify import verify_folder as verify_files
from mlimg.sources.ranged import RangedFile

if TYPE_CHECKING:
    from mlimg.runtime.stores.objects import Bucket

_AT_ONCE: Final = 4
_MOST_NAMED: Final = 10
_HINT: Final = "what reads it is refused: restore what is stored, or publish it again under a new version"


@dataclass(frozen=True, slots=True)
class Verified:
    """Something that is stored, every byte of which is what its digests say."""

    reference: str  # pinned, but for a layout
    kind: str
    items: int  # blobs, or files
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Item:
    """A blob or a file. `chunks` raises IntegrityError where it is not what it was."""

    name: str  # for people, "" where its digest says all
    size_bytes: int
    chunks: Callable[[], Iterator[bytes]]
    is_lost: Callable[[], bool] = lambda: False  # asked where the place refuses it


def verify_image(reference: ImageReference, access: Access, report: Reporter) -> Verified:
    """Read every blob of an image or artifact in a registry; of an index, of all that it lists.

    Raises IntegrityError that names what is damaged or lost, and what a registry raises.
    """
    stop = Event()
    with closing(Registry(access, stop)) as registry:
        descriptor, _ = registry.manifest(reference)
        pinned = str(reference.with_digest(descriptor.digest))
        reader = RegistryReader(registry, reference)
        blobs = _blobs(reader, [descriptor], pinned)
        items = [
            _Item(
                _name(blob),
                blob.size_bytes,
                partial(registry.open_blob, reference, blob),
                partial(_lacks, registry, reference, blob),
            )
            for blob in blobs
        ]
        _read(items, pinned, report, stop)
        return _verified(pinned, read_contents(reader, descriptor, pinned).kind, items)


def verify_layout(layout: Layout, entries: Sequence[LayoutEntry], report: Reporter) -> Verified:
    """Read every blob of some images in a layout, once. Raises IntegrityError as above, LimitError, LocalIOError."""
    where = str(layout.folder)
    blobs = _blobs(layout, [entry.descriptor for entry in entries], where)
    items = [_Item(_name(blob), blob.size_bytes, partial(_checked, layout, blob)) for blob in blobs]
    _read(items, where, report, Event())
    return _verified(where, "OCI layout", items)


def verify_objects(uri: ModelUri, access: Access, report: Reporter) -> Verified:
    """Read every file of a version in an object store. Raises IntegrityError as above, and what the store raises."""
    from mlimg.runtime.stores.objects import Bucket  # noqa: PLC0415 (obstore comes with it)

    stop = Event()
    with closing(open_origin(uri, access, stop)) as origin, closing(Bucket(uri.place(), access, stop)) as bucket:
        model = origin.open(uri)
        pinned = uri.pinned(Digest.of(model.manifest_bytes))
        items = [
            _Item(
                "",
                remote.file.size_bytes,
                partial(_file_of, remote, f"{bucket}/{remote.file.path}", access),
                partial(_is_absent, bucket, remote),
            )
            for remote in model.files
        ]
        _read(items, str(pinned), report, stop)
        return _verified(str(pinned), "model", items)


def published_in(folder: Path, digest: Digest | None = None) -> tuple[ModelManifest, bytes]:
    """The manifest of the version in a folder, and its bytes; `digest` is what it must have.

    Raises ModelError where no version is, IntegrityError, LocalIOError.
    """
    found = read_manifest(folder)
    if found is None:
        raise ModelError(
            f"{printable(str(folder))} holds no published model: there is no {MANIFEST_NAME}",
            hint="name the folder of one version: STORE/NAME/VERSION",
        )
    if digest not in {None, Digest.of(found[1])}:
        raise IntegrityError(f"{folder / MANIFEST_NAME} is not the one that {digest} names")
    return found


def verify_version(folder: Path, report: Reporter, *, digest: Digest | None = None) -> Verified:
    """Read every file of a version in a folder; `digest` is what its manifest must have.

    Raises ModelError where no version is, IntegrityError that names a file which is damaged, lost or too many,
    LocalIOError.
    """
    manifest, data = published_in(folder, digest)
    lock = Lock()
    with report.step(f"read {printable(str(folder))}", manifest.size_bytes) as step:

        def count(size_bytes: int) -> None:
            with lock:
                step.advance(size_bytes)

        try:
            verify_files(folder, manifest, "digests", count)
        except ModelError as error:  # a file that is not there: whoever starts with it may still fetch it
            raise IntegrityError(error.message, hint=_HINT) from error
    uri = ModelUri("file", str(folder.absolute()), Digest.of(data))
    return Verified(str(uri), "model", len(manifest.files), manifest.size_bytes)


def _blobs(reader: Reader, manifests: Iterable[Descriptor], where: str) -> list[Descriptor]:
    """What manifests name, each blob once, the largest first."""
    found: dict[Digest, Descriptor] = {}
    for manifest in manifests:
        for single in _listed(reader, manifest, where):
            parts = parse_manifest(reader.document(single), where)
            for blob in (parts.config, *parts.layers):
                # A ModelPack artifact says which file a blob is; the image of the same layers does not.
                found[blob.digest] = blob if blob.annotations else found.get(blob.digest, blob)
    return sorted(found.values(), key=lambda blob: -blob.size_bytes)


def _listed(reader: Reader, manifest: Descriptor, where: str) -> list[Descriptor]:
    """The manifest itself, or those that it lists."""
    if not is_index(manifest):
        return [manifest]
    listed = parse_object(reader.document(manifest), where).get("manifests")
    try:
        found = [Descriptor.parse(item) for item in cast("list[object]", listed if isinstance(listed, list) else [])]
    except ValueError as error:
        raise IntegrityError(f"{where}: {printable(str(error))[:200]}") from error
    if any(is_index(single) for single in found):
        raise IntegrityError(f"{where} is a list of lists of images")
    return found


def _name(blob: Descriptor) -> str:
    return printable(blob.annotations.get(FILE_PATH, ""))[:200]


def _checked(layout: Layout, blob: Descriptor) -> Iterator[bytes]:
    yield from layout.blob(blob).chunks()


def _lacks(registry: Registry, reference: ImageReference, blob: Descriptor) -> bool:
    return registry.has_blob(reference, blob.digest) is None


def _is_absent(bucket: "Bucket", remote: RemoteFile) -> bool:
    return bucket.head(remote.file.path) is None


def _file_of(remote: RemoteFile, name: str, access: Access) -> Iterator[bytes]:
    """A file of an object store, taken up again where its connection breaks."""
    file = remote.file

    def attempt(offset: int) -> Generator[bytes, None, None]:
        return cast("Generator[bytes, None, None]", remote.read(offset, file.size_bytes - offset))

    with RangedFile(
        name,
        file.size_bytes,
        attempt,
        sha256=file.sha256,
        attempts=access.attempts,
        backoff_seconds=access.backoff_seconds,
    ) as opened:
        while piece := opened.read(READ_SIZE_BYTES):
            yield piece


def _read(items: Sequence[_Item], where: str, report: Reporter, stop: Event) -> None:
    """Read everything, several at once. Raises IntegrityError with all that is damaged or lost, when all is read."""
    lock = Lock()
    damaged: list[str] = []
    with report.step(f"read {where}", sum(item.size_bytes for item in items)) as step:

        def read(item: _Item) -> None:
            try:
                for chunk in item.chunks():
                    if stop.is_set():
                        raise Stopped
                    with lock:
                        step.advance(len(chunk))
            except (IntegrityError, RemoteError) as error:
                if isinstance(error, RemoteError) and not item.is_lost():
                    raise
                with lock:
                    damaged.append(error.message + (f" (`{item.name}`)" if item.name else ""))

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="verify") as threads:
            try:
                for done in wait([threads.submit(read, item) for item in items], return_when=FIRST_EXCEPTION).done:
                    done.result()
            except BaseException:
                stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        if damaged:
            more = f"; and {len(damaged) - _MOST_NAMED} more" if len(damaged) > _MOST_NAMED else ""
            raise IntegrityError(
                f"{where}: {len(damaged)} of {len(items)} damaged or lost: {'; '.join(sorted(damaged)[:_MOST_NAMED])}"
                f"{more}",
                hint=_HINT,
            )


def _verified(reference: str, kind: str, items: Sequence[_Item]) -> Verified:
    return Verified(reference, kind, len(items), sum(item.size_bytes for item in items))
