"""An image's layers out of the engine: one `docker save`, read as it comes, each layer written once."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from mlimg.engine import wire
from mlimg.engine.archive import read_saved
from mlimg.engine.border import engine_errors
from mlimg.engine.proof import Proofs, incomplete, saved_layers
from mlimg.runtime.descriptor import OCI_LAYER, Descriptor
from mlimg.runtime.digest import Digest

if TYPE_CHECKING:
    from mlimg.engine.docker import Engine, EngineImage


class BlobSink(Protocol):
    """Where layers are kept by digest."""

    def size_of(self, digest: Digest) -> int | None:
        """The length of a blob, None where it is not there."""

    def add_unknown(self, chunks: Iterator[bytes]) -> tuple[Digest, bool]:
        """Keep a blob; its digest, and whether it was not there before."""

    def discard(self, digest: Digest) -> None:
        """Take a blob away again."""


def known_layers(engine: "Engine", image: "EngineImage", sink: BlobSink) -> list[Descriptor] | None:
    """The layers, where `sink` has all of them already: nothing is read of the engine then."""
    if engine.store == "graph":
        sizes = [sink.size_of(diff_id) for diff_id in image.image.diff_ids]
        layers = [
            Descriptor(OCI_LAYER, diff_id, size)
            for diff_id, size in zip(image.image.diff_ids, sizes, strict=True)
            if size is not None
        ]
        return layers if len(layers) == len(sizes) else None
    proven = Proofs(engine).known(image.id)
    return proven if proven and all(sink.size_of(layer.digest) == layer.size_bytes for layer in proven) else None


def save_layers(engine: "Engine", image: "EngineImage", sink: BlobSink) -> list[Descriptor]:
    """Bring an image's layers into `sink`, lowest first: as they lie in the containerd store, as plain tars else.

    Raises EngineError when the engine lacks one, and what `sink` raises.
    """
    new: set[Digest] = set()

    def keep(name: str, size_bytes: int, content: Iterator[bytes]) -> None:
        claimed = name.removeprefix("blobs/sha256/")
        if claimed != name and sink.size_of(Digest.parse(f"sha256:{claimed}")) == size_bytes:
            return
        digest, is_new = sink.add_unknown(content)
        if is_new:
            new.add(digest)

    try:
        with (
            engine_errors(f"save {image.id}"),
            wire.call(engine.client, "GET", f"/images/{image.id}/get") as response,
        ):
            saved = read_saved(wire.parts(response), keep)
        layers = known_layers(engine, image, sink) if engine.store == "graph" else saved_layers(saved, image)
        if not layers or any(sink.size_of(layer.digest) != layer.size_bytes for layer in layers):
            raise ValueError("a layer is missing")
    except (ValueError, KeyError, TypeError) as error:
        raise incomplete(image, error) from error
    for digest in new - {layer.digest for layer in layers}:  # a configuration that is no JSON, a file named VERSION
        sink.discard(digest)
    return layers
