"""An image's manifest, index and config as a registry sends them, read strictly.

https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md. What is malformed is an IntegrityError, what is
merely too much a LimitError, so that nothing of either kind reaches whoever uses the values.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mlimg.runtime.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    OCI_TWIN,
    Descriptor,
)
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError, IntegrityError, LimitError, printable

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_CONFIG_BYTES: Final = 8 * 1024 * 1024
_MAX_LAYERS: Final = 1000
MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_INDEX)
_INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})

PlatformTriple = tuple[str, str, str]
"""Operating system, architecture and variant ("" where there is none)."""


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image in a registry: its manifest, its config, and its layers under their OCI names."""

    manifest: Descriptor
    config_bytes: bytes
    config: Mapping[str, Any]
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[Digest, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)  # of the manifest
    manifest_bytes: bytes = b""

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of the config."""
        settings = self.config.get("config")
        return _texts(settings.get("Labels") if isinstance(settings, dict) else None)

    @property
    def platform(self) -> PlatformTriple:
        """What the config says the image runs on."""
        os, architecture, variant = (self.config.get(key, "") for key in ("os", "architecture", "variant"))
        return str(os), str(architecture), str(variant)


@dataclass(frozen=True, slots=True)
class ManifestParts:
    """What an image manifest points at, and its own bytes."""

    data: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


def is_index(manifest: Descriptor) -> bool:
    """Whether a manifest is a list of manifests, one per platform."""
    return manifest.media_type in _INDEX_TYPES


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object somebody sent. Raises IntegrityError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} is not a JSON object")
    return value


def media_type_of(data: bytes, content_type: str, what: str) -> str:
    """The type of a manifest. Raises IntegrityError when content and header, or the content itself, contradict."""
    value = parse_object(data, what)
    written = value.get("mediaType")
    header = content_type.partition(";")[0].strip()
    # Read as the other kind, the same bytes would be another image: CVE-2021-41190.
    if ("manifests" in value and ("layers" in value or "config" in value)) or (
        written is not None and header in MANIFEST_TYPES and written != header
    ):
        raise IntegrityError(f"{what} claims to be of two kinds")
    if written is None:
        written = header if header in MANIFEST_TYPES else OCI_INDEX if "manifests" in value else OCI_MANIFEST
    if written not in MANIFEST_TYPES:
        raise IntegrityError(f"{what} has the type {printable(str(written))[:100]}, which is not an image's")
    return str(written)


def parse_manifest(data: bytes, what: str) -> ManifestParts:
    """Read an image manifest. Raises IntegrityError, LimitError."""
    value = parse_object(data, what)
    listed = value.get("layers")
    if value.get("schemaVersion") != 2 or not isinstance(listed, list):
        raise IntegrityError(f"{what} is not an image manifest of schema version 2")
    if len(listed) > _MAX_LAYERS:
        raise LimitError(f"{what} has {len(listed)} layers, more than {_MAX_LAYERS}")
    layers = tuple(_descriptor(item, what) for item in listed)
    return ManifestParts(data, _descriptor(value.get("config"), what), layers, _texts(value.get("annotations")))


def parse_config(manifest: Descriptor, parts: ManifestParts, config_bytes: bytes, what: str) -> RemoteImage:
    """Put an image together from its manifest and config. Raises IntegrityError when they do not fit."""
    config = parse_object(config_bytes, f"the config of {what}")
    rootfs = config.get("rootfs")
    kind = parts.config.media_type
    if rootfs is None and kind != OCI_CONFIG:
        raise IntegrityError(
            f"{what} is no image but an artifact of the type {printable(kind)[:100]}",
            hint="the model's image lies beside its ModelPack artifact: the same tag without `-modelpack`"
            if kind.startswith("application/vnd.cncf.model.")
            else "",
        )
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    try:
        diff_ids = tuple(Digest.parse(str(text)) for text in listed or ())
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"the config of {what} has a malformed diff ID") from error
    if len(diff_ids) != len(parts.layers):
        raise IntegrityError(f"{what} has {len(parts.layers)} layers and {len(diff_ids)} diff IDs")
    return RemoteImage(manifest, config_bytes, config, parts.layers, diff_ids, parts.annotations, parts.data)


def _texts(value: object) -> dict[str, str]:
    """The texts of a JSON object; whatever else somebody sent there says nothing."""
    return {key: text for key, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def choose_platform(data: bytes, platform: PlatformTriple, what: str) -> Descriptor:
    """The manifest for a platform from an index; attestations are no candidates.

    Raises EngineError when the platform is not there, IntegrityError when the index is malformed.
    """
    listed = parse_object(data, what).get("manifests")
    if not isinstance(listed, list):
        raise IntegrityError(f"{what} is not an index")
    os, architecture, variant = platform
    found: list[tuple[str, Descriptor]] = []
    offered: list[str] = []
    for item in listed:
        descriptor = _descriptor(item, what)
        where = item.get("platform")
        if not isinstance(where, dict) or "vnd.docker.reference.type" in descriptor.annotations:
            continue
        own = str(where.get("variant", ""))
        offered.append("/".join(filter(None, (str(where.get("os")), str(where.get("architecture")), own))))
        if (where.get("os"), where.get("architecture")) == (os, architecture):
            found.append((_variant(architecture, own), descriptor))
    wanted = _variant(architecture, variant)
    fitting = [descriptor for own, descriptor in found if own == wanted]
    if not variant and not fitting:
        fitting = [descriptor for _, descriptor in found]
    if not fitting:
        name = "/".join(filter(None, platform))
        raise EngineError(f"{what} has no image for {name}", hint=f"it has {printable(', '.join(offered[:20]))}")
    return fitting[0]


def _variant(architecture: str, variant: str) -> str:
    return variant or ("v8" if architecture == "arm64" else "")


def _descriptor(item: object, what: str) -> Descriptor:
    try:
        descriptor = Descriptor.parse(item)
    except ValueError as error:
        raise IntegrityError(f"{what}: {printable(str(error))[:200]}") from error
    assert isinstance(item, dict)  # noqa: S101 (Descriptor.parse refuses everything else)
    if item.get("urls"):
        raise IntegrityError(f"{what} sends for a blob to another place (`urls`)")
    embedded = item.get("data")
    if embedded is not None:
        try:
            fits = Digest.of(base64.b64decode(str(embedded), validate=True)) == descriptor.digest
        except (binascii.Error, ValueError):
            fits = False
        if not fits:
            raise IntegrityError(f"{what} embeds data that does not match its digest")
    return replace(descriptor, media_type=OCI_TWIN.get(descriptor.media_type, descriptor.media_type))
