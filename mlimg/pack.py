"""A model's files become layers: plain tars that come out the same, byte for byte, whoever packs them.

`docs/model-artifact.md` is the specification: which files share a layer, and where the manifest goes.
"""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO, Final

from mlimg.hashing.cache import HashCache
from mlimg.hashing.layer import threads_each
from mlimg.model_layer import Learned, ModelLayer
from mlimg.runtime.descriptor import OnBytes, ignore_bytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import LimitError
from mlimg.runtime.manifest import MAX_MANIFEST_BYTES, ModelFile, ModelManifest
from mlimg.sources import ModelSource, SourceFile

MODELS: Final = PurePosixPath("models")
OWN_LAYER_BYTES: Final = 64 * 1024**2  # a file of that size gets a layer to itself
BUNDLE_BYTES: Final = 256 * 1024**2  # of smaller files in one layer
MAX_MODEL_LAYERS: Final = 96  # the graph driver stops at 125, the server's included
_MAX_LAYERS_AT_ONCE: Final = 8  # beyond that, a disk gains nothing


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
    with hashes.forgetting():
        *lower, last = hash_layers([*lower, _recall_files(last, hashes)], on_bytes)
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
    """Give layers the digests that they lack: as many at once as the processors can hash.

    The last one is the manifest's: until that is in it, only its files are hashed. Raises ModelError and LocalIOError.
    """
    lock = threading.Lock()
    stop = threading.Event()

    def tell(size_bytes: int) -> None:
        with lock:
            on_bytes(size_bytes)

    at_once = max(1, min(len(layers), _MAX_LAYERS_AT_ONCE, (os.cpu_count() or 1) // threads_each()))
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
    learned = Learned()
    for chunk in layer.stream(learned, whole=whole):
        if stop.is_set():
            raise CancelledError
        if isinstance(chunk, memoryview):
            on_bytes(len(chunk))
    return replace(layer, sha256s=learned.sha256s, digest=learned.digest)


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
