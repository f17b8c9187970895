"""What proves, without the network, that a version's `mlimg.manifest` is the one that a URI names.

The digest in the URI of an object store is that of `mlimg.manifest` itself. In the URI of a registry it is that of the
image's manifest: this names the image's config, whose label names the model by its set digest, and so every file. Both
are kept beside the version, ``<digest>.manifest.json`` and ``<digest>.config.json``: whoever alters the files of a
shared folder, and their `mlimg.manifest` with them, cannot alter these to fit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from mlimg.runtime.descriptor import OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, LimitError, LocalIOError
from mlimg.runtime.manifest import MANIFEST_NAME, ModelManifest
from mlimg.runtime.oci.image import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, RemoteImage, parse_config, parse_manifest
from mlimg.runtime.reference import MODEL_DIGEST_LABEL, ModelUri
from mlimg.runtime.version_folder import write_whole

_MANIFEST: Final = "manifest.json"
_CONFIG: Final = "config.json"


@dataclass(frozen=True, slots=True)
class ImageProof:
    """The manifest and the config of a model image, as their digests give them."""

    manifest: bytes
    config: bytes

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What lies beside a version's folder. Raises IntegrityError where there is none, LocalIOError."""
        return cls(_read(folder, _MANIFEST, MAX_MANIFEST_BYTES), _read(folder, _CONFIG, MAX_CONFIG_BYTES))

    def write(self, folder: Path) -> None:
        """Put it beside a version's folder, which need not be there yet. Raises LocalIOError."""
        try:
            write_whole(_beside(folder, _MANIFEST), self.manifest)
            write_whole(_beside(folder, _CONFIG), self.config)
        except OSError as error:
            raise LocalIOError(f"cannot write beside {folder}: {error.strerror}") from error

    def check(self, digest: Digest, model: ModelManifest, what: str) -> None:
        """Raise IntegrityError or LimitError unless the image with that digest is one of that very model."""
        parts = parse_manifest(self.manifest, what)
        if Digest.of(self.manifest) != digest or Digest.of(self.config) != parts.config.digest:
            raise IntegrityError(f"what is kept of the image of {what} was altered")
        manifest = Descriptor(OCI_MANIFEST, digest, len(self.manifest))
        check_label(parse_config(manifest, parts, self.config, what), model, what)


def check_label(image: RemoteImage, model: ModelManifest, what: str) -> None:
    """Raise IntegrityError unless the label of a model image names that very model.

    An image without that label, which mlimg never makes, says nothing of its model by which it could be told later.
    """
    label = image.labels.get(MODEL_DIGEST_LABEL)
    if label != model.digest.text:
        raise IntegrityError(f"{what} has {'no label of its model' if label is None else 'the label of another model'}")


def check_version(folder: Path, uri: ModelUri, model: ModelManifest, manifest_bytes: bytes) -> None:
    """Raise IntegrityError or LimitError unless a version's manifest is the one of a pinned model, LocalIOError."""
    assert uri.digest is not None  # noqa: S101 (the folder is called after it)
    if uri.scheme == "oci":
        ImageProof.read(folder).check(uri.digest, model, str(uri))
    elif Digest.of(manifest_bytes) != uri.digest:
        raise IntegrityError(f"{folder / MANIFEST_NAME} is not the one that {uri} names")


def remove_proof(folder: Path) -> None:
    """Remove what lies beside a version's folder. Raises OSError."""
    for name in (_MANIFEST, _CONFIG):
        _beside(folder, name).unlink(missing_ok=True)


def _read(folder: Path, name: str, limit_bytes: int) -> bytes:
    path = _beside(folder, name)
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        raise IntegrityError(f"nothing proves what is in {folder}: {path.name} is missing beside it") from None
    except OSError as error:
        raise LocalIOError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit_bytes:
        raise LimitError(f"{path} is larger than {limit_bytes} bytes")
    return data


def _beside(folder: Path, name: str) -> Path:
    return folder.with_name(f"{folder.name}.{name}")
