"""A server and model layers become one image in the engine, which receives only what it lacks.

Every rule here was learned by experiment; `docs/architecture.md` has them all:

* The archive has no name in it: with one, a load that is refused can still move the tag, to a broken image. So the
  image is looked up by its ID, and tagged then.
* The graph driver knows a layer only as part of a chain: the lowest layers that it has are left out, by diffID.
* The containerd store takes anything: a wrong descriptor loads, even runs, and fails at the next push. Left out are
  only blobs that are proven to be in it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from mlimg.append import Image
from mlimg.engine import wire
from mlimg.engine.archive import Archive, Entry, graph_entries, layout_entries
from mlimg.engine.border import engine_errors, engine_failed
from mlimg.engine.proof import Proofs
from mlimg.runtime.descriptor import Blob, Descriptor, OnBytes, ignore_bytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError

if TYPE_CHECKING:
    from mlimg.engine.docker import Engine, EngineImage, EngineInfo

_MODEL_LABEL: Final = "io.mlimg.model.name"
_GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class Appended:
    """An image that the engine has, by its ID there, and how much of the model had to be sent for it."""

    id: str
    sent_bytes: int


def load(
    engine: "Engine",
    server: "EngineImage",
    image: Image,
    layers: Sequence[Blob],
    *,
    tags: Sequence[str],
    on_bytes: OnBytes = ignore_bytes,
) -> Appended:
    """Load `image`, whose lowest layers are those of `server` and whose others are `layers`, and tag it.

    `on_bytes` counts all of `layers`, those that the engine has at once. Raises EngineError, leaving no tag and no
    image behind; ModelError when the model's files change meanwhile.
    """
    into = _into_graph if engine.store == "graph" else _into_containerd
    appended = into(engine, server, image, layers, on_bytes)
    for tag in tags:
        engine.tag(appended.id, tag)
    return appended


def _into_graph(
    engine: "Engine", server: "EngineImage", image: Image, layers: Sequence[Blob], on_bytes: OnBytes
) -> Appended:
    image_id = image.identity.text
    if _is_there(engine, image_id, image):
        return Appended(image_id, 0)
    there = max(_common(other.image.diff_ids, image.diff_ids) for other in _relatives(engine, server))
    missing = layers[there - len(server.image.layers) :]
    on_bytes(_size(layers) - _size(missing))
    _send(engine, image_id, image, graph_entries(image, missing), on_bytes)
    return Appended(image_id, _size(missing))


def _into_containerd(
    engine: "Engine", server: "EngineImage", image: Image, layers: Sequence[Blob], on_bytes: OnBytes
) -> Appended:
    proofs = Proofs(engine)
    proven = proofs.prove(server)
    described = [replace(layer, descriptor=blob) for layer, blob in zip(image.layers, proven, strict=False)]
    image = replace(image, layers=(*described, *image.layers[len(proven) :]))
    manifest = image.manifest()
    image_id = Digest.of(manifest).text
    missing: list[Blob] = []
    if not _is_there(engine, image_id, image):
        known = {blob.digest for other in _relatives(engine, server) for blob in proofs.known(other.id)}
        missing = [layer for layer in layers if layer.digest not in known]
        on_bytes(_size(layers) - _size(missing))
        _send(engine, image_id, image, layout_entries(image, manifest, missing), on_bytes)
    # What was left out is proven, and what was sent the store has hashed: so all of this image is proven too.
    proofs.keep(image_id, list(_descriptors(image)))
    return Appended(image_id, _size(missing))


def _send(engine: "Engine", image_id: str, image: Image, entries: Sequence[Entry], on_bytes: OnBytes) -> None:
    archive = Archive(entries, on_bytes)
    check_room(engine.info, len(archive))
    try:
        with (
            engine_errors("load the image"),
            wire.call(
                engine.client,
                "POST",
                "/images/load",
                params={"quiet": "1"},
                headers={"Content-Type": "application/x-tar"},
                body=archive,
                send_seconds=None,
                stall_seconds=60 + 30 * len(archive) / _GIB,  # nothing is said between the last byte and the end
            ) as response,
        ):
            for message in wire.messages(response):
                if words := wire.refusal(message):
                    raise engine_failed("load the image", words)
        if not _is_there(engine, image_id, image):
            raise EngineError(
                f"the engine took the image {image_id} and does not have it as it was sent",
                hint="please report this, with `mlimg doctor`",
            )
    except BaseException:
        with suppress(EngineError):  # the first failure is the one to tell
            _remove_remains(engine, image_id)
        raise


def check_room(info: "EngineInfo", archive_bytes: int) -> None:
    """See that the engine has room: it keeps the archive until all of it is unpacked. Raises EngineError.

    Nothing is known of the disk of an engine elsewhere.
    """
    needed, free = 2 * archive_bytes, info.free_bytes
    if free is not None and free < needed:
        raise EngineError(
            f"the engine needs {needed} bytes in {info.data_root} to load the image, and {free} are free there",
            hint="`docker system df` tells what takes the room; `mlimg build --push` needs none of the engine's",
        )


def _remove_remains(engine: "Engine", image_id: str) -> None:
    remains = engine.image(image_id)
    if remains is not None and not remains.repo_tags:  # with a name, somebody else has just made the same image
        engine.remove(image_id)


def _is_there(engine: "Engine", image_id: str, image: Image) -> bool:
    found = engine.image(image_id)
    return found is not None and found.image.identity == image.identity


def _relatives(engine: "Engine", server: "EngineImage") -> "Iterator[EngineImage]":
    """The images that may share layers with a new one: its server, and what was appended before."""
    yield server
    yield from engine.images_by_label(_MODEL_LABEL)


def _common(theirs: Sequence[Digest], ours: Sequence[Digest]) -> int:
    """How many of the lowest layers two images share."""
    count = 0
    for one, other in zip(theirs, ours, strict=False):
        if one != other:
            break
        count += 1
    return count


def _size(layers: Sequence[Blob]) -> int:
    return sum(layer.size_bytes for layer in layers)


def _descriptors(image: Image) -> Iterator[Descriptor]:
    for layer in image.layers:
        if layer.descriptor is not None:
            yield layer.descriptor
