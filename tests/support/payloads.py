"""Small models, packed and ready to be published."""

from collections.abc import Mapping

from mlimg.append import model_image
from mlimg.modelpack import model_pack
from mlimg.pack import pack
from mlimg.runtime.stores import ModelPayload
from tests.support.models import DictSource
from tests.support.registry import MemoryRegistry

FILES = {"model.joblib": b"weights " * 1000, "vocabulary/words.txt": b"one two three"}


def payload(
    files: Mapping[str, bytes] = FILES,
    name: str = "digits",
    version: str = "3",
    *,
    with_pack: bool = False,
    labels: Mapping[str, str] | None = None,
) -> ModelPayload:
    """A packed model, its ModelPack artifact too where it is asked for; `labels` are its image's besides its own."""
    packed = pack(DictSource(files), name=name, version=version, framework="sklearn", format="joblib")
    image = model_image(packed.layers, {"io.mlimg.model.digest": packed.manifest.digest.text} | dict(labels or {}))
    artifact = model_pack(packed.manifest, packed.layers, {}) if with_pack else None
    return ModelPayload(packed.manifest, packed.layers, image.config(), image.manifest(), packed.open, artifact)


def publish_in_memory(registry: MemoryRegistry, model: ModelPayload, repository: str = "models/digits") -> str:
    """Put a model into a registry in memory; gives the digest of its manifest."""
    layers = [b"".join(bytes(chunk) for chunk in layer.chunks()) for layer in model.layers]
    registry.put(repository, model.image_config, *layers)
    return registry.put_manifest(repository, model.manifest.version, model.image_manifest).text
