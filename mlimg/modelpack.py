"""The ModelPack artifact of a model: the CNCF's manifest over the layers that the model image has. Pure.

https://github.com/modelpack/model-spec/blob/main/docs/spec.md. Its schema allows no keys of others in the config, so
what is ours is in annotations. Equal models give equal bytes: there are no times.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, Protocol

from mlimg.runtime.descriptor import OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.manifest import ModelManifest
from mlimg.runtime.stores import ModelPack

ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT_LAYER: Final = "application/vnd.cncf.model.weight.v1.tar"
WEIGHT_CONFIG_LAYER: Final = "application/vnd.cncf.model.weight.config.v1.tar"
FILE_PATH: Final = "org.cncf.model.filepath"
TITLE: Final = "org.opencontainers.image.title"
# Files that tell how weights are to be read. A layer of nothing else is one that a reader may take before the weights.
_CONFIG_SUFFIXES: Final = frozenset({".json", ".yaml", ".yml", ".toml", ".txt", ".md", ".jinja", ".jinja2", ".pbtxt"})


class PackedLayer(Protocol):
    """A layer of a model whose digest is known, and the files in it."""

    @property
    def digest(self) -> Digest | None:
        """The content's sha256, which is the diffID too: the tar is not compressed."""

    @property
    def size_bytes(self) -> int:
        """The tar's length."""

    @property
    def prefix(self) -> PurePosixPath:
        """The model's folder in the tar."""

    @property
    def paths(self) -> tuple[PurePosixPath, ...]:
        """The model's files in it, below `prefix`."""


def model_pack(manifest: ModelManifest, layers: Sequence[PackedLayer], annotations: Mapping[str, str]) -> ModelPack:
    """Config and manifest of the artifact. `layers` are those of the model image, in its order."""
    described = [_describe(layer, number, layers) for number, layer in enumerate(layers, start=1)]
    config = canonical_json(
        {
            "descriptor": _about(manifest),
            "config": {"format": manifest.format},
            "modelfs": {"type": "layers", "diffIds": [layer.digest.text for layer in described]},
        }
    )
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": Descriptor(CONFIG_TYPE, Digest.of(config), len(config)).to_json(),
        "layers": [layer.to_json() for layer in described],
        "annotations": dict(sorted(annotations.items())),
    }
    return ModelPack(config, canonical_json(value))


def _about(manifest: ModelManifest) -> dict[str, str]:
    about = {"name": manifest.name, "title": manifest.name, "version": manifest.version}
    source = manifest.source or {}
    for key, ours in (("sourceURL", "uri"), ("revision", "revision")):
        if ours in source:
            about[key] = source[ours]
    return about


def _describe(layer: PackedLayer, number: int, layers: Sequence[PackedLayer]) -> Descriptor:
    """`oras pull` skips what has no title, and writes the layer under it; other readers unpack the tar themselves."""
    if layer.digest is None:
        raise ValueError("a model layer goes into a manifest before its digest is known")
    (only, *others) = [layer.prefix / path for path in layer.paths] or [layer.prefix]
    annotations = {FILE_PATH: str(layer.prefix if others else only), TITLE: f"layer-{number:02}.tar"}
    return Descriptor(_media_type(layer, layers), layer.digest, layer.size_bytes, annotations)


def _media_type(layer: PackedLayer, layers: Sequence[PackedLayer]) -> str:
    """A model has weights: what would leave it with none is taken for weights, whatever its files are called."""
    is_config = all(path.suffix in _CONFIG_SUFFIXES for path in layer.paths)
    others_are_weights = any(path.suffix not in _CONFIG_SUFFIXES for other in layers for path in other.paths)
    return WEIGHT_CONFIG_LAYER if is_config and others_are_weights else WEIGHT_LAYER
