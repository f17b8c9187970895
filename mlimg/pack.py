"""A model's files become layers: plain tars that come out the same, byte for byte, whoever packs them.

`docs/model-artifact.md` is the specification. Nothing is written to disk: a layer reads its files anew each time it
is sent, and notices when they are not what was hashed.
"""

import hashlib
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from mlimg.runtime.descriptor import OnBytes, ignore_bytes
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import LimitError, ModelError, printable
from mlimg.runtime.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, ModelFile, ModelManifest
from mlimg.sources import ModelSource, SourceFile

if TYPE_CHECKING:
    import io

MODELS: Final = PurePosixPath("models")
OWN_LAYER_BYTES: Final = 64 * 1024**2  # a file of that size gets a layer to itself
BUNDLE_BYTES: Final = 256 * 1024**2  # of smaller files in one layer
MAX_MODEL_LAYERS: Final = 96  # the graph driver stops at 125, the server's included
_BLOCK_BYTES: Final = 512
_END_OF_ARCHIVE: Final = bytes(2 * _BLOCK_BYTES)
_MAX_LAYERS_AT_ONCE: Final = 8  # beyond that, a disk gains nothing
_WORTH_A_THREAD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ModelLayer:
    """A layer of a model, a `Blob`: some of its files, and the manifest in the last one.

    What is not hashed yet has no `digest` and no `sha256s`; `stream` learns them while it goes.
    """

    source: ModelSource
    prefix: PurePosixPath
    files: tuple[SourceFile, ...]
    manifest: bytes | None = None
    sha256s: Mapping[PurePosixPath, Digest] = field(default_factory=dict)
    digest: Digest | None = None

    @property
    def paths(self) -> tuple[PurePosixPath, ...]:
        """The model's files in it, as the manifest names them."""
        return tuple(file.path for file in self.files)

    @property
    def size_bytes(self) -> int:
        """The tar's length."""
        return sum(len(header) + size + _padding(size) for header, size, _ in self._entries()) + len(_END_OF_ARCHIVE)

    @property
    def resume_key(self) -> str | None:
        """Follows from the files' fingerprints and everything else that is in the tar."""
        if self.digest is not None:
            return self.digest.text
        if not all(file.fingerprint for file in self.files):
            return None
        sha256 = hashlib.sha256()
        for header, _, content in self._entries():
            sha256.update(header)
            sha256.update((content.fingerprint or "").encode() if isinstance(content, SourceFile) else content)
        return f"unhashed:{sha256.hexdigest()}"

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The tar. Raises ModelError, before the last chunk, if a file is not what was hashed; LocalIOError.

        A memoryview holds until the next chunk is asked for.
        """
        return self.stream({})

    def stream(self, learned: dict[PurePosixPath, Digest]) -> Iterator[bytes | memoryview]:
        """The tar, while the digests of files that are not hashed yet go to `learned`. Raises as `chunks` does.

        Files come as memoryviews, everything else as bytes. A memoryview holds until the next but one is asked for,
        so that another thread can hash it meanwhile.
        """
        buffers = cycle((memoryview(bytearray(READ_SIZE_BYTES)), memoryview(bytearray(READ_SIZE_BYTES))))
        # Headers and padding between two contents go as one chunk, and the end waits until every file is checked.
        between = b""
        for header, size, content in self._entries():
            between += header
            if isinstance(content, SourceFile):
                yield between
                yield from self._content(content, buffers, learned)
                between = bytes(_padding(size))
            else:
                between += content + bytes(_padding(size))
        yield between + _END_OF_ARCHIVE

    def _entries(self) -> Iterator[tuple[bytes, int, SourceFile | bytes]]:
        """Header, size and content of each entry. The manifest comes first: a reader can check what follows."""
        folders: set[PurePosixPath] = set()
        if self.manifest is not None:
            path = self.prefix / MANIFEST_NAME
            yield from _new_folders(path, folders)
            yield _header(path, len(self.manifest)), len(self.manifest), self.manifest
        for file in self.files:
            path = self.prefix / file.path
            yield from _new_folders(path, folders)
            yield _header(path, file.size_bytes, executable=file.executable), file.size_bytes, file

    def _content(
        self, file: SourceFile, buffers: Iterator[memoryview], learned: dict[PurePosixPath, Digest]
    ) -> Iterator[memoryview]:
        sha256 = hashlib.sha256()
        left = file.size_bytes
        with self.source.open(file.path) as opened:
            reader = cast("io.RawIOBase", opened)  # every binary file has readinto, only its type does not say so
            while left:
                buffer = next(buffers)
                size = reader.readinto(buffer[: min(left, len(buffer))])
                if not size:
                    raise _changed(file, "is shorter than it was")
                yield buffer[:size]
                sha256.update(buffer[:size])
                left -= size
            if reader.readinto(bytearray(1)):
                raise _changed(file, "is longer than it was")
        digest = Digest("sha256:" + sha256.hexdigest())
        if learned.setdefault(file.path, self.sha256s.get(file.path, digest)) != digest:
            raise _changed(file, "is not the file that was hashed")


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A model ready to be sent: its manifest, and its layers in the order of an image, the manifest's last."""

    manifest: ModelManifest
    manifest_bytes: bytes
    layers: tuple[ModelLayer, ...]
    source: ModelSource

    @property
    def manifest_digest(self) -> Digest:
        """The digest of the file `mlimg.manifest`, by which model versions are compared."""
        return Digest.of(self.manifest_bytes)

    @property
    def size_bytes(self) -> int:
        """All layers together."""
        return sum(layer.size_bytes for layer in self.layers)

    def open(self, path: PurePosixPath) -> BinaryIO:
        """Open one of the model's files; its reader checks it against the manifest. Raises ModelError, LocalIOError."""
        return self.source.open(path)


def pack(
    source: ModelSource,
    *,
    name: str,
    version: str,
    framework: str,
    format: str,  # noqa: A002 (the manifest's word)
    on_bytes: OnBytes = ignore_bytes,
    prefix: PurePosixPath = MODELS,
) -> PackedModel:
    """Hash the model's files and lay them out as layers below `prefix`.

    `on_bytes` is told of the files' bytes as they are hashed, by one thread at a time. Raises ModelError when the
    files change meanwhile, LocalIOError when they cannot be read, LimitError when they are too many.
    """
    *lower, last = hash_layers(lay_out(source, prefix), on_bytes)
    digests = {path: digest for layer in (*lower, last) for path, digest in layer.sha256s.items()}
    manifest = ModelManifest(
        name=name,
        version=version,
        framework=framework,
        format=format,
        files=tuple(ModelFile(file.path, file.size_bytes, digests[file.path]) for file in source.inventory()),
    )
    data = manifest.to_bytes()
    if len(data) > MAX_MANIFEST_BYTES:
        raise LimitError(
            f"the list of the model's files has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}",
            hint="use shorter paths or fewer files",
        )
    # The manifest names every file and comes first in its layer, so this one layer is read again.
    (last,) = hash_layers([replace(last, manifest=data)], ignore_bytes)
    return PackedModel(manifest, data, (*lower, last), source)


def lay_out(source: ModelSource, prefix: PurePosixPath = MODELS) -> list[ModelLayer]:
    """Share the files out to layers, nothing read yet. The last one is the manifest's, and may have no files."""
    files = source.inventory().files
    alone = [(file,) for file in files if file.size_bytes >= OWN_LAYER_BYTES]
    *full, last = _bundles([file for file in files if file.size_bytes < OWN_LAYER_BYTES])
    groups = [*alone, *full]
    if len(groups) >= MAX_MODEL_LAYERS:
        rest = sorted((file for group in groups for file in group), key=lambda file: str(file.path))
        groups = _share(rest, MAX_MODEL_LAYERS - 1)
    return [ModelLayer(source, prefix, group) for group in (*groups, last)]


def hash_layers(layers: Sequence[ModelLayer], on_bytes: OnBytes) -> list[ModelLayer]:
    """Give layers their digests: several at once, two threads each, so that file and layer are hashed in one reading.

    Raises ModelError and LocalIOError.
    """
    lock = threading.Lock()
    stop = threading.Event()

    def tell(size_bytes: int) -> None:
        with lock:
            on_bytes(size_bytes)

    at_once = max(1, min(len(layers), _MAX_LAYERS_AT_ONCE, (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(at_once) as readers, ThreadPoolExecutor(at_once) as helpers:
        hashed = [readers.submit(_hash, layer, helpers, tell, stop) for layer in layers]
        try:
            wait(hashed, return_when=FIRST_EXCEPTION)
            for future in hashed:
                if future.done():
                    future.result()
            return [future.result() for future in hashed]
        finally:
            stop.set()


def _hash(layer: ModelLayer, helper: Executor, on_bytes: OnBytes, stop: threading.Event) -> ModelLayer:
    learned: dict[PurePosixPath, Digest] = {}
    sha256 = hashlib.sha256()
    running: Future[None] | None = None
    for chunk in layer.stream(learned):
        if running is not None:
            running.result()
            running = None
        if stop.is_set():
            raise CancelledError
        if len(chunk) < _WORTH_A_THREAD_BYTES:
            sha256.update(chunk)
        else:
            running = helper.submit(sha256.update, chunk)
        if isinstance(chunk, memoryview):
            on_bytes(len(chunk))
    return replace(layer, sha256s=learned, digest=Digest("sha256:" + sha256.hexdigest()))


def _bundles(files: Sequence[SourceFile]) -> list[tuple[SourceFile, ...]]:
    bundles: list[tuple[SourceFile, ...]] = []
    bundle: list[SourceFile] = []
    size = 0
    for file in files:
        if size + file.size_bytes > BUNDLE_BYTES:
            bundles.append(tuple(bundle))
            bundle, size = [], 0
        bundle.append(file)
        size += file.size_bytes
    return [*bundles, tuple(bundle)]


def _share(files: Sequence[SourceFile], count: int) -> list[tuple[SourceFile, ...]]:
    """Cut `files` into at most `count` runs: a file goes where its middle lies among all their bytes."""
    total = sum(file.size_bytes for file in files)
    shares: list[list[SourceFile]] = [[] for _ in range(count)]
    start = 0
    for file in files:
        middle_twice = 2 * start + file.size_bytes
        shares[min(middle_twice * count // (2 * total), count - 1)].append(file)
        start += file.size_bytes
    return [tuple(share) for share in shares if share]


def _new_folders(path: PurePosixPath, known: set[PurePosixPath]) -> Iterator[tuple[bytes, int, bytes]]:
    """Entries for the folders of `path` that have none yet: an engine would make them with today's time.

    The topmost has none, as it would change the owner of a folder that is the server's.
    """
    for folder in list(path.parents)[-3::-1]:
        if folder not in known:
            known.add(folder)
            yield _header(folder, 0, folder=True), 0, b""


def _header(path: PurePosixPath, size_bytes: int, *, executable: bool = False, folder: bool = False) -> bytes:
    info = tarfile.TarInfo(str(path))  # owner 0:0 without names, time 0
    info.size = size_bytes
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    info.mode = 0o755 if executable or folder else 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size_bytes: int) -> int:
    return -size_bytes % _BLOCK_BYTES


def _changed(file: SourceFile, how: str) -> ModelError:
    return ModelError(
        f"`{printable(str(file.path))}` changed while it was read: it {how}",
        hint="run again when whatever writes the model has finished",
    )
