"""What the containerd store is proven to hold: the blobs of an image, read out of it once.

The store is asked by `docker save`, which gives an image's manifest and blobs as they lie there. That reads the whole
image, so what was learned is kept by image ID: as long as the engine has that image, it keeps the image's blobs.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlimg.engine import wire
from mlimg.engine.archive import Saved, read_saved
from mlimg.engine.border import engine_errors
from mlimg.runtime.descriptor import DOCKER_INDEX, OCI_INDEX, OCI_TWIN, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError

if TYPE_CHECKING:
    from mlimg.engine.docker import Engine, EngineImage


class Proofs:
    """What is known of an engine's content, kept in the user's cache folder where there is one."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._folder = _folder(engine)

    def prove(self, image: "EngineImage") -> list[Descriptor]:
        """The blobs of an image's layers, lowest first, all of them in the store.

        Raises EngineError when the store lacks one: such an image runs, and can be neither pushed nor saved.
        """
        if known := self.known(image.id):
            return known
        with (
            engine_errors(f"save {image.id}"),
            wire.call(self._engine.client, "GET", f"/images/{image.id}/get") as response,
        ):
            saved = read_saved(wire.parts(response))
        try:
            layers = saved_layers(saved, image)
        except (ValueError, KeyError, TypeError) as error:
            raise incomplete(image, error) from error
        self.keep(image.id, layers)
        return layers

    def known(self, image_id: str) -> list[Descriptor]:
        """What was proven before of an image that the engine has; nothing for any other."""
        if self._folder is None:
            return []
        with suppress(OSError, ValueError, TypeError):
            values = json.loads(self._path(image_id).read_bytes())
            return [Descriptor.parse(value) for value in values]
        return []

    def keep(self, image_id: str, layers: Sequence[Descriptor]) -> None:
        """Remember for the next time. That it cannot be kept costs time then, and nothing now."""
        if self._folder is None:
            return
        path = self._path(image_id)
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "w") as file:
                json.dump([layer.to_json() for layer in layers], file)
            Path(scratch).replace(path)

    def _path(self, image_id: str) -> Path:
        assert self._folder is not None  # noqa: S101 (both callers looked)
        return self._folder / f"{Digest.parse(image_id).hex}.json"


def incomplete(image: "EngineImage", error: Exception) -> EngineError:
    """What is told of an image that the engine runs and does not have all blobs of."""
    name = next(iter(image.repo_tags), image.id)
    return EngineError(
        f"the engine does not have all of {name} ({error})", hint="pull it again, or build it again with --no-cache"
    )


def _folder(engine: "Engine") -> Path | None:
    environ = engine.environ
    if environ.get("XDG_CACHE_HOME"):
        root = Path(environ["XDG_CACHE_HOME"])
    elif environ.get("HOME"):
        root = Path(environ["HOME"]) / ".cache"
    else:
        return None
    # Another engine may have the image under the same ID and its blobs in another form.
    return root / "mlimg" / "engine" / hashlib.sha256(engine.info.id.encode()).hexdigest()[:12]


def saved_layers(saved: Saved, image: "EngineImage") -> list[Descriptor]:
    """The descriptors of the image's layers. Raises ValueError, KeyError or TypeError when not all are there."""
    manifest = _manifest(saved, saved.document("index.json")["manifests"], image)
    config = saved.blob(Digest.parse(manifest["config"]["digest"]))
    if [Digest.parse(text) for text in config["rootfs"]["diff_ids"]] != list(image.image.diff_ids):
        raise ValueError("what it saves is another image")
    layers = []
    for value in manifest["layers"]:
        blob = Descriptor.parse(value)
        if saved.sizes.get(blob.digest) != blob.size_bytes:
            raise ValueError(f"{blob.digest} is missing")
        layers.append(Descriptor(OCI_TWIN.get(blob.media_type, blob.media_type), blob.digest, blob.size_bytes))
    if len(layers) != len(image.image.layers):
        raise ValueError("its manifest has another number of layers")
    return layers


def _manifest(saved: Saved, entries: Sequence[Mapping[str, Any]], image: "EngineImage") -> Mapping[str, Any]:
    """The manifest for the image's platform, through the indexes above it."""
    for entry in entries:
        digest = Digest.parse(entry["digest"])
        if entry["mediaType"] in {OCI_INDEX, DOCKER_INDEX}:
            with suppress(ValueError):
                return _manifest(saved, saved.blob(digest)["manifests"], image)
            continue
        platform = entry.get("platform") or {}
        if platform.get("architecture", image.image.architecture) == image.image.architecture:
            with suppress(ValueError):
                return saved.blob(digest)
    raise ValueError("its manifest is missing")
