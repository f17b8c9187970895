"""A model's files become layers: plain tars that come out the same, byte for byte, whoever packs them.

`docs/model-artifact.md` is the specification. Nothing is written to disk: a layer reads its files anew each time it
is sent, and notices when they are not what was hashed.
"""

import hashlib
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from mlimg.hash_cache import HashCache
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
_NAME_BYTES: Final = 100  # of a header; what does not fit goes into an extended one
_MAX_OCTAL: Final = 8**11 - 1


@dataclass(frozen=True)
class ModelLayer:
    """A layer of a model, a `Blob`: some of its files, and the manifest in the last one.

    What is not hashed yet has no `digest` and not all `sha256s`; `stream` learns them while it goes.
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

    @cached_property
    def size_bytes(self) -> int:
        """The tar's length."""
        return sum(len(header) + size + _padding(size) for header, size, _ in self._entries()) + len(_END_OF_ARCHIVE)

    @property
    def knows_files(self) -> bool:
        """Whether the digest of each of its files is known."""
        return all(file.path in self.sha256s for file in self.files)

    @property
    def content_key(self) -> str | None:
        """Names the tar's bytes before they are hashed: equal keys, equal bytes, everywhere.

        None while the digest of one of its files is not known.
        """
        if not self.knows_files:
            return None
        return self._key("layer", {file.path: self.sha256s[file.path].text for file in self.files})

    @property
    def resume_key(self) -> str | None:
        """Follows from the files' digests, else from their fingerprints, and everything else that is in the tar."""
        if self.digest is not None:
            return self.digest.text
        if key := self.content_key:
            return key
        fingerprints = {file.path: file.fingerprint for file in self.files if file.fingerprint}
        return self._key("unhashed", fingerprints) if len(fingerprints) == len(self.files) else None

    def _key(self, kind: str, names: Mapping[PurePosixPath, str]) -> str:
        sha256 = hashlib.sha256()
        for header, _, content in self._entries():
            sha256.update(header)
            sha256.update(names[content.path].encode() if isinstance(content, SourceFile) else content)
        return f"{kind}:{sha256.hexdigest()}"

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The tar. Raises ModelError, before the last chunk, if a file is not what was hashed; LocalIOError.

        A memoryview holds until the next chunk is asked for.
        """
        return self.stream({})

    def stream(self, learned: dict[PurePosixPath, Digest]) -> Iterator[bytes | memoryview]:
        """The tar, while the digests of its files go to `learned`. Raises as `chunks` does.

        Files come as memoryviews, everything else as bytes. A thread hashes the files, so that whoever takes the
        chunks can hash or send the tar at the same time.
        """
        # Headers and padding between two contents go as one chunk, and the end waits until every file is checked.
        between = b""
        with closing(_Behind()) as behind:
            for header, size, content in self._entries():
                between += header
                if isinstance(content, SourceFile):
                    yield between
                    yield from self._content(content, behind, learned)
                    between = bytes(_padding(size))
                else:
                    between += content + bytes(_padding(size))
        yield between + _END_OF_ARCHIVE

    def _entries(self) -> Iterator[tuple[bytes, int, SourceFile | bytes]]:
        """Header, size and content of each entry. The manifest comes first: a reader can check what follows."""
        folders: set[str] = set()
        if self.manifest is not None:
            path = f"{self.prefix}/{MANIFEST_NAME}"
            yield from _new_folders(path, folders)
            yield _header(path, len(self.manifest)), len(self.manifest), self.manifest
        for file in self.files:
            path = f"{self.prefix}/{file.path}"
            yield from _new_folders(path, folders)
            yield _header(path, file.size_bytes, executable=file.executable), file.size_bytes, file

    def _content(
        self, file: SourceFile, behind: "_Behind", learned: dict[PurePosixPath, Digest]
    ) -> Iterator[memoryview]:
        sha256 = hashlib.sha256()
        left = file.size_bytes
        with self.source.open(file.path) as opened:
            reader = cast("io.RawIOBase", opened)  # every binary file has readinto, only its type does not say so
            while left:
                buffer = behind.buffer()
                size = reader.readinto(buffer[: min(left, len(buffer))])
                if not size:
                    raise _changed(file, "is shorter than it was")
                behind.update(sha256, buffer[:size])
                yield buffer[:size]
                left -= size
            if reader.readinto(bytearray(1)):
                raise _changed(file, "is longer than it was")
        behind.wait()
        digest = Digest("sha256:" + sha256.hexdigest())
        if learned.setdefault(file.path, self.sha256s.get(file.path, digest)) != digest:
            raise _changed(file, "is not the file that was hashed")


class _Behind:
    """Hashes buffers in turn, in a thread of its own, behind whoever fills them.

    There are two: while one is hashed and sent, the other is filled.
    """

    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(READ_SIZE_BYTES)) for _ in range(2)]
        self._updates: list[Future[None] | None] = [None, None]
        self._turn = 0
        self._thread: ThreadPoolExecutor | None = None

    def buffer(self) -> memoryview:
        """The next buffer to fill, which holds until the next but one is asked for."""
        self._turn ^= 1
        self._finish(self._turn)
        return self._buffers[self._turn]

    def update(self, sha256: "hashlib._Hash", chunk: memoryview) -> None:
        """Hash what the last buffer holds now."""
        if len(chunk) < _WORTH_A_THREAD_BYTES:
            self.wait()
            sha256.update(chunk)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash-file")
        self._updates[self._turn] = self._thread.submit(sha256.update, chunk)

    def wait(self) -> None:
        """Until everything is hashed."""
        self._finish(0)
        self._finish(1)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _finish(self, turn: int) -> None:
        update, self._updates[turn] = self._updates[turn], None
        if update is not None:
            update.result()


class Sending:
    """A layer, a `Blob`, that is hashed while it is sent; what was learned on the way stays."""

    digest: Final = None

    def __init__(self, layer: ModelLayer) -> None:
        self._layer = layer
        self._learned: dict[PurePosixPath, Digest] = {}

    @property
    def size_bytes(self) -> int:
        """The tar's length."""
        return self._layer.size_bytes

    @property
    def resume_key(self) -> str | None:
        """The layer's."""
        return self._layer.resume_key

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The tar. Read again, it gives the same bytes or raises ModelError."""
        return self._layer.stream(self._learned)

    def arrived(self, digest: Digest) -> ModelLayer:
        """The layer with what is known of it now that it was stored under `digest`."""
        return replace(self._layer, sha256s=dict(self._learned), digest=digest)


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
    hashes: HashCache | None = None,
    sent: Sequence[ModelLayer] = (),
) -> PackedModel:
    """Hash the model's files and lay them out as layers below `prefix`.

    What `hashes` knows, and the layers that were `sent` before, are not read again. `on_bytes` is told of the files'
    bytes as they are hashed, by one thread at a time. Raises ModelError when the files change meanwhile, LocalIOError
    when they cannot be read, LimitError when they are too many.
    """
    hashes = hashes if hashes is not None else HashCache()
    arrived = {layer.paths: layer for layer in sent}
    *plain, last = lay_out(source, prefix)
    lower = [arrived.get(layer.paths) or recall(layer, hashes) for layer in plain]
    try:
        *lower, last = hash_layers([*lower, _recall_files(last, hashes)], on_bytes)
    except ModelError:
        hashes.forget()  # perhaps it was not the files that changed
        raise
    digests = {path: digest for layer in (*lower, last) for path, digest in layer.sha256s.items()}
    manifest = ModelManifest(
        name=name,
        version=version,
        framework=framework,
        format=format,
        files=tuple(ModelFile(file.path, file.size_bytes, digests[file.path]) for file in source.inventory()),
        source=source.inventory().origin,
    )
    data = manifest.to_bytes()
    if len(data) > MAX_MANIFEST_BYTES:
        raise LimitError(
            f"the list of the model's files has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}",
            hint="use shorter paths or fewer files",
        )
    # The manifest names every file and comes first in its layer, so this one layer is read again.
    (last,) = hash_layers([_recall_layer(replace(last, manifest=data), hashes)], ignore_bytes)
    for layer in (*lower, last):
        remember(layer, hashes)
    return PackedModel(manifest, data, (*lower, last), source)


def recall(layer: ModelLayer, hashes: HashCache) -> ModelLayer:
    """The layer with what its source's listing and earlier runs tell of its digests."""
    return _recall_layer(_recall_files(layer, hashes), hashes)


def _recall_files(layer: ModelLayer, hashes: HashCache) -> ModelLayer:
    known = {file.path: file.sha256 or _recall(file, hashes) for file in layer.files}
    return replace(layer, sha256s={path: digest for path, digest in known.items() if digest is not None})


def _recall_layer(layer: ModelLayer, hashes: HashCache) -> ModelLayer:
    return replace(layer, digest=hashes.find(layer.content_key))


def _recall(file: SourceFile, hashes: HashCache) -> Digest | None:
    return hashes.find(file.fingerprint and f"file:{file.fingerprint}")


def remember(layer: ModelLayer, hashes: HashCache) -> None:
    """Keep a layer's digests for later runs."""
    for file in layer.files:
        if file.fingerprint and file.path in layer.sha256s:
            hashes.learn(f"file:{file.fingerprint}", layer.sha256s[file.path])
    if layer.digest is not None:
        hashes.learn(layer.content_key, layer.digest)


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
    """Give layers the digests that they lack: several at once, two threads each, for the files and for the tar.

    The last one is the manifest's: until that is in it, only its files are hashed. Raises ModelError and LocalIOError.
    """
    lock = threading.Lock()
    stop = threading.Event()

    def tell(size_bytes: int) -> None:
        with lock:
            on_bytes(size_bytes)

    at_once = max(1, min(len(layers), _MAX_LAYERS_AT_ONCE, (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(at_once, thread_name_prefix="hash-layer") as readers:
        hashed = [
            readers.submit(_hash, layer, tell, stop, whole=layer is not layers[-1] or layer.manifest is not None)
            for layer in layers
        ]
        try:
            wait(hashed, return_when=FIRST_EXCEPTION)
            for future in hashed:
                if future.done():
                    future.result()
            return [future.result() for future in hashed]
        finally:
            stop.set()


def _hash(layer: ModelLayer, on_bytes: OnBytes, stop: threading.Event, *, whole: bool) -> ModelLayer:
    if layer.digest is not None or (not whole and layer.knows_files):
        on_bytes(sum(file.size_bytes for file in layer.files))
        return layer
    learned: dict[PurePosixPath, Digest] = {}
    sha256 = hashlib.sha256()
    for chunk in layer.stream(learned):
        if stop.is_set():
            raise CancelledError
        if whole:
            sha256.update(chunk)
        if isinstance(chunk, memoryview):
            on_bytes(len(chunk))
    return replace(layer, sha256s=learned, digest=Digest("sha256:" + sha256.hexdigest()) if whole else None)


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


def _new_folders(path: str, known: set[str]) -> Iterator[tuple[bytes, int, bytes]]:
    """Entries for the folders of `path` that have none yet: an engine would make them with today's time.

    The topmost has none, as it would change the owner of a folder that is the server's.
    """
    new: list[str] = []
    folder = path.rpartition("/")[0]
    while "/" in folder and folder not in known:
        new.append(folder)
        folder = folder.rpartition("/")[0]
    known.update(new)
    for folder in reversed(new):
        yield _header(folder, 0, folder=True), 0, b""


def _header(path: str, size_bytes: int, *, executable: bool = False, folder: bool = False) -> bytes:
    name = path.encode()
    if len(name) > _NAME_BYTES or size_bytes > _MAX_OCTAL or not path.isascii() or folder:
        info = tarfile.TarInfo(path)  # owner 0:0 without names, time 0
        info.size = size_bytes
        info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
        info.mode = 0o755 if executable or folder else 0o644
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    # The same bytes, ten times as fast: models have up to 50 000 files, and each is named more than once.
    before, after, total = _PLAIN[executable]
    size = b"%011o" % size_bytes
    checksum = b"%06o" % (total + sum(name) + sum(size))
    return b"%b%b%b%b%b%b" % (name.ljust(_NAME_BYTES, b"\0"), before, size, after[:13], checksum, after[13:])


def _plain(mode: int) -> tuple[bytes, bytes, int]:
    """What lies in a plain file's header between name and size, what follows the size, and the sum of both."""
    info = tarfile.TarInfo("")
    info.mode = mode
    block = info.tobuf(tarfile.PAX_FORMAT)
    before, after = block[100:124], block[135:148] + block[154:]
    # The checksum counts as eight spaces, of which one is in `after`.
    return before, after, sum(before) + sum(after) + 7 * ord(" ")


_PLAIN: Final = {executable: _plain(0o755 if executable else 0o644) for executable in (False, True)}


def _padding(size_bytes: int) -> int:
    return -size_bytes % _BLOCK_BYTES


def _changed(file: SourceFile, how: str) -> ModelError:
    return ModelError(
        f"`{printable(str(file.path))}` changed while it was read: it {how}",
        hint="run again when whatever writes the model has finished",
    )
