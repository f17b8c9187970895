"""A server image and model layers become one image: two small JSON files. Pure.

The config is computed, never patched: the same settings and layers give the same bytes whether they
came from the engine's graph driver, its containerd store or a registry, so the digest of the config is
an image's identity everywhere. `docs/architecture.md` has the reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from mlimg.runtime.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Blob, Descriptor
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import LimitError

# What a container runtime reads of a config; everything else (build times, host names, …) is left out.
_SETTINGS: Final = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "Shell",
    "OnBuild",
)
# https://github.com/containerd/platforms/blob/v1.0.0/database.go: what these stand for without a variant.
_BASE_VARIANTS: Final = frozenset({("amd64", "v1"), ("arm64", "v8"), ("arm64", "8")})
MAX_LAYERS: Final = 120  # the graph driver stops at 125


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: its content's identity, and its blob where one is known (the graph driver has none before a push)."""

    diff_id: Digest
    descriptor: Descriptor | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An image as far as a container runtime sees it."""

    os: str
    architecture: str
    variant: str
    settings: Mapping[str, Any]
    layers: tuple[Layer, ...]

    @classmethod
    def of(
        cls,
        *,
        os: str,
        architecture: str,
        variant: str,
        settings: Mapping[str, Any],
        layers: Sequence[Layer],
    ) -> Self:
        """Keep of `settings` (a config's ``config``, an engine's ``Config``) what a runtime reads and is not empty.

        A variant that every machine of the architecture has is left out: some writers name it, some do not.
        """
        if (architecture, variant) in _BASE_VARIANTS:
            variant = ""
        kept = {key: settings[key] for key in _SETTINGS if settings.get(key)}
        return cls(os, architecture, variant, kept, tuple(layers))

    @property
    def labels(self) -> Mapping[str, str]:
        """The image's labels."""
        labels: Mapping[str, str] = self.settings.get("Labels", {})
        return labels

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """The layers' contents, lowest first."""
        return tuple(layer.diff_id for layer in self.layers)

    def config(self) -> bytes:
        """The canonical config; an engine tells no history, so all of its lines are one."""
        value: dict[str, Any] = {
            "architecture": self.architecture,
            "created": "1970-01-01T00:00:00Z",
            "config": self.settings,
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "mlimg"} for _ in self.layers],
            "os": self.os,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id.text for layer in self.layers]},
        }
        if self.variant:
            value["variant"] = self.variant
        return canonical_json(value)

    @property
    def identity(self) -> Digest:
        """The digest of the canonical config."""
        return Digest.of(self.config())

    def manifest(self, annotations: Mapping[str, str] | None = None) -> bytes:
        """The OCI manifest. Raises ValueError when the blob of a layer is not known."""
        config = self.config()
        layers = []
        for layer in self.layers:
            if layer.descriptor is None:
                raise ValueError(f"no blob is known for layer {layer.diff_id}")
            layers.append(layer.descriptor.to_json())
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor(OCI_CONFIG, Digest.of(config), len(config)).to_json(),
            "layers": layers,
        }
        if annotations:
            value["annotations"] = dict(sorted(annotations.items()))
        return canonical_json(value)


def append(server: Image, model_layers: Sequence[Blob], labels: Mapping[str, str]) -> Image:
    """Lay a model on a server. `model_layers` are plain tars, so a blob's digest is its diffID too.

    Raises LimitError when an engine could not run what comes out.
    """
    if len(server.layers) + len(model_layers) > MAX_LAYERS:
        raise LimitError(
            f"the server has {len(server.layers)} layers and the model {len(model_layers)}: "
            f"engines stop at {MAX_LAYERS} together",
            hint="build the server from a base with fewer layers",
        )
    layers = [*server.layers, *(_model_layer(blob) for blob in model_layers)]
    all_labels = dict(sorted({**server.labels, **labels}.items()))
    settings = {**server.settings, "Labels": all_labels} if all_labels else server.settings  # empty ones are dropped
    return replace(server, settings=settings, layers=tuple(layers))


def model_image(model_layers: Sequence[Blob], labels: Mapping[str, str]) -> Image:
    """The shell-less, mountable image of a model alone: linux/amd64 whatever runs it, so that one digest serves all."""
    return Image.of(
        os="linux",
        architecture="amd64",
        variant="",
        settings={"Labels": dict(sorted(labels.items()))},
        layers=[_model_layer(blob) for blob in model_layers],
    )


def _model_layer(blob: Blob) -> Layer:
    if blob.digest is None:
        raise ValueError("a model layer is appended before its digest is known")
    descriptor = Descriptor(OCI_LAYER, blob.digest, blob.size_bytes)
    return Layer(blob.digest, descriptor)
