"""What an image or artifact holds, told from its manifest, its config and the first bytes of its last layer."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from mlimg.append import Image, Layer
from mlimg.modelpack import ARTIFACT_TYPE
from mlimg.runtime.descriptor import OCI_CONFIG, OCI_TWIN, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError, IntegrityError, LimitError, ModelError
from mlimg.runtime.oci.image import (
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    RemoteImage,
    choose_platform,
    is_index,
    parse_config,
    parse_manifest,
    parse_object,
)
from mlimg.runtime.reference import MODEL_DIGEST_LABEL, SERVER_INPUTS_LABEL
from mlimg.runtime.unpack import peek_manifest

if TYPE_CHECKING:
    from collections.abc import Generator

    from mlimg.runtime.manifest import ModelManifest
    from mlimg.runtime.oci import Registry
    from mlimg.runtime.reference import ImageReference

Kind = Literal["in-image image", "server image", "model image", "ModelPack artifact", "image", "artifact"]
_AMD64 = ("linux", "amd64", "")


class Reader(Protocol):
    """Where manifests and blobs are read: a registry's repository, or a layout."""

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or config, checked against its digest."""

    def open_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A layer, of which only the beginning may be read."""


class RegistryReader:
    """A repository of a registry."""

    def __init__(self, registry: "Registry", reference: "ImageReference") -> None:
        self._registry = registry
        self._reference = reference

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or config. Raises what a registry raises, LimitError."""
        if descriptor.media_type in MANIFEST_TYPES:
            return self._registry.manifest(self._reference.with_digest(descriptor.digest))[1]
        if descriptor.size_bytes > MAX_CONFIG_BYTES:
            raise LimitError(f"the config of {self._reference} is larger than {MAX_CONFIG_BYTES} bytes")
        return b"".join(self._registry.open_blob(self._reference, descriptor))

    def open_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A layer, for whoever reads its start. Raises what a registry raises."""
        return self._registry.open_blob(self._reference, descriptor, only_start=True)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model in an image or artifact. What only `mlimg.manifest` tells is None where that was not read."""

    name: str
    version: str
    framework: str
    digest: str  # the set digest of its files
    format: str | None = None
    manifest_digest: str | None = None
    files: int | None = None
    size_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The facts that are known."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server in an image."""

    version: str
    template: str
    inputs: str
    key: str

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Contents:
    """An image or artifact, read without its layers."""

    kind: Kind
    manifest: Descriptor
    layers: tuple[Descriptor, ...]
    labels: Mapping[str, str]  # of the config; an artifact's annotations
    platform: str = ""
    identity: Digest | None = None  # of the canonical config; artifacts have none
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFacts | None = None
    server: ServerFacts | None = None
    platforms: tuple[str, ...] = ()  # what the index that led here offers

    @property
    def size_bytes(self) -> int:
        """All layers together."""
        return sum(layer.size_bytes for layer in self.layers)


def read_contents(reader: Reader, descriptor: Descriptor, what: str) -> Contents:
    """Read what `descriptor` names; of an index the image for linux/amd64, else the first one.

    Raises IntegrityError and LimitError for what is malformed, and what `reader` raises.
    """
    data = reader.document(descriptor)
    platforms: tuple[str, ...] = ()
    if is_index(descriptor):
        platforms = tuple(_platforms(data, what))
        descriptor = _chosen(data, what)
        if is_index(descriptor):
            raise IntegrityError(f"{what} is a list of lists of images")
        data = reader.document(descriptor)
    parts = parse_manifest(data, what)
    if parts.config.media_type != OCI_CONFIG:
        value = parse_object(data, what)
        is_pack = ARTIFACT_TYPE in {value.get("artifactType"), parts.config.media_type}
        model = _model(reader, parts.layers, parts.annotations) if is_pack else None
        kind: Kind = "ModelPack artifact" if is_pack else "artifact"
        return Contents(kind, descriptor, parts.layers, parts.annotations, model=model, platforms=platforms)
    found = parse_config(descriptor, parts, reader.document(parts.config), what)
    image = remote_image(found)
    server = server_facts(found.labels)
    model = _model(reader, found.layers, found.labels) if MODEL_DIGEST_LABEL in found.labels else None
    return Contents(
        kind=kind_of(found.labels),
        manifest=descriptor,
        layers=found.layers,
        labels=found.labels,
        platform="/".join(filter(None, found.platform)),
        identity=image.identity,
        settings=image.settings,
        model=model,
        server=server,
        platforms=platforms,
    )


def remote_image(remote: RemoteImage) -> Image:
    """An image in a registry as a container runtime sees it."""
    os, architecture, variant = remote.platform
    return Image.of(
        os=os,
        architecture=architecture,
        variant=variant,
        settings=remote.config.get("config") or {},
        layers=[Layer(diff_id, layer) for diff_id, layer in zip(remote.diff_ids, remote.layers, strict=True)],
    )


def kind_of(labels: Mapping[str, str]) -> Kind:
    """What an image is, by its labels."""
    has_model, has_server = MODEL_DIGEST_LABEL in labels, SERVER_INPUTS_LABEL in labels
    if has_model:
        return "in-image image" if has_server else "model image"
    return "server image" if has_server else "image"


def server_facts(labels: Mapping[str, str]) -> ServerFacts | None:
    """What the labels say of the server."""
    if SERVER_INPUTS_LABEL not in labels:
        return None
    return ServerFacts(*(labels.get(f"io.mlimg.server.{key}", "") for key in ("version", "template", "inputs", "key")))


def model_facts(labels: Mapping[str, str]) -> ModelFacts | None:
    """What the labels say of the model."""
    if MODEL_DIGEST_LABEL not in labels:
        return None
    name, version, framework, digest = (
        labels.get(f"io.mlimg.model.{key}", "") for key in ("name", "version", "framework", "digest")
    )
    return ModelFacts(name, version, framework, digest)


def manifest_facts(manifest: "ModelManifest", data: bytes) -> ModelFacts:
    """What `mlimg.manifest` says of the model; `data` are its bytes."""
    return ModelFacts(
        name=manifest.name,
        version=manifest.version,
        framework=manifest.framework,
        digest=manifest.digest.text,
        format=manifest.format,
        manifest_digest=Digest.of(data).text,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
    )


def _model(reader: Reader, layers: tuple[Descriptor, ...], labels: Mapping[str, str]) -> ModelFacts | None:
    """What `mlimg.manifest` says, which begins the last layer; the labels where there is none."""
    if not layers:
        return model_facts(labels)
    with closing(cast("Generator[bytes, None, None]", reader.open_blob(layers[-1]))) as pieces:
        try:
            known = peek_manifest(pieces)
        except (ModelError, IntegrityError):  # it begins otherwise: there is no such model in it
            return model_facts(labels)
    return manifest_facts(known.manifest, known.manifest_bytes)


def _chosen(data: bytes, what: str) -> Descriptor:
    try:
        return choose_platform(data, _AMD64, what)
    except EngineError:
        listed = parse_object(data, what)["manifests"]
        try:
            first = Descriptor.parse(next(iter(listed), None))
        except ValueError as error:
            raise IntegrityError(f"{what} lists no images") from error
        return Descriptor(OCI_TWIN.get(first.media_type, first.media_type), first.digest, first.size_bytes)


def _platforms(data: bytes, what: str) -> Iterator[str]:
    listed = parse_object(data, what).get("manifests")
    for item in listed if isinstance(listed, list) else []:
        where = item.get("platform") if isinstance(item, dict) else None
        if isinstance(where, dict) and where.get("os") != "unknown":  # attestations
            yield "/".join(str(where[key]) for key in ("os", "architecture", "variant") if where.get(key))
