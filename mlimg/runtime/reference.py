"""Names of images and models in registries and stores."""

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final, Self

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import printable
from mlimg.runtime.hosts import is_loopback
from mlimg.runtime.manifest import model_path

OBJECT_SCHEMES: Final = frozenset({"s3", "gs", "az"})

# https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pulling-manifests
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DOMAIN_PART = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_DOCKER_HUB = "docker.io"
# Labels of images, by which models and servers are told and compared.
MODEL_DIGEST_LABEL: Final = "io.mlimg.model.digest"
SERVER_INPUTS_LABEL: Final = "io.mlimg.server.inputs"
PACK_SUFFIX = "-modelpack"  # of a tag: the ModelPack artifact that lies beside a model image


def check_tag(text: str) -> str:
    """Return `text` if a registry takes it as a tag. Raises ValueError with the rule."""
    if not _TAG.fullmatch(text):
        raise ValueError(
            f"{text!r} cannot be a tag: at most 128 of letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"
        )
    return text


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image or artifact in a registry: ``registry/repository[:tag][@digest]``.

    Docker's short names are read as Docker reads them: ``python:3.13-slim`` is
    ``docker.io/library/python:3.13-slim``.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference. Raises ValueError with the rule that is broken."""
        rest, at, digest = text.partition("@")
        name, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            name, tag = rest, ""
        elif not tag:
            raise ValueError(f"{text!r} ends in `:` without a tag")
        first, slash, remainder = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
            registry, repository = first, remainder
        else:
            registry = _DOCKER_HUB
            repository = name if slash else f"library/{name}"
        if registry in {"index.docker.io", "registry-1.docker.io"}:
            registry = _DOCKER_HUB
        if registry == _DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        port = registry.rpartition(":")[2]
        if not _REGISTRY.fullmatch(registry) or (port.isdigit() and ":" in registry and int(port) > 65535):
            raise ValueError(f"{registry!r} is not a registry's host[:port]")
        if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
            raise ValueError(
                f"{repository!r} is not a repository: lower-case letters and digits, parted by `/`, `.`, `_` or `-`"
            )
        return cls(
            registry,
            repository,
            check_tag(tag) if tag else None,
            Digest.parse(digest) if at else None,
        )

    @property
    def name(self) -> str:
        """``registry/repository`` without tag and digest, Docker Hub shortened as Docker prints it."""
        if self.registry != _DOCKER_HUB:
            return f"{self.registry}/{self.repository}"
        owner, _, rest = self.repository.partition("/")
        if "/" not in rest and owner == "library":
            return rest
        # Read again, a first part like these would be a registry's host.
        return f"{_DOCKER_HUB}/{self.repository}" if "." in owner or owner == "localhost" else self.repository

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine: Docker speaks plain HTTP to those by itself."""
        return is_loopback(self.registry)

    def with_tag(self, tag: str) -> Self:
        """The same repository under another tag, unpinned. Raises ValueError for an impossible tag."""
        return replace(self, tag=check_tag(tag), digest=None)

    def with_digest(self, digest: Digest) -> Self:
        """The same name pinned to `digest`."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


# What S3, Google and Azure all take, and Google's `_`: their own rules are narrower.
_HERE: Final = PurePosixPath()
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


def is_object_store(text: str) -> bool:
    """Whether this is the address of an object store, by its scheme."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme in OBJECT_SCHEMES


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """A prefix of a bucket: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``."""

    scheme: str
    bucket: str
    prefix: PurePosixPath = _HERE

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address; one that ends in `/` is that without. Raises ValueError with the rule that is broken."""
        scheme, _, location = text.partition("://")
        bucket, _, prefix = location.partition("/")
        if not is_object_store(text):
            raise ValueError(
                "expected an address such as s3://bucket/folder, gs://bucket/folder or az://container/folder"
            )
        # People paste signed addresses and keys: what is refused is not shown.
        if "?" in text or "#" in text:
            raise ValueError("the address of an object store has no query; credentials come from the environment")
        if not _BUCKET.fullmatch(bucket):
            raise ValueError("the bucket's name is not one: 3 to 63 lower-case letters, digits, `-`, `_` and `.`")
        prefix = prefix.removesuffix("/")
        return cls(scheme, bucket, model_path(prefix) if prefix else PurePosixPath())

    def __truediv__(self, name: str) -> Self:
        """A prefix below."""
        return replace(self, prefix=self.prefix / name)

    @property
    def location(self) -> str:
        """Bucket and prefix."""
        return "/".join((self.bucket, *self.prefix.parts))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.location}"


@dataclass(frozen=True, slots=True)
class ModelUri:
    """Where a published model is.

    ``oci://registry/repo/name:version[@sha256:…]``, ``s3://bucket/prefix/name/version[@sha256:…]`` (likewise ``gs`` and
    ``az``) or ``file:///folder[@sha256:…]``.

    The digest is that of the OCI manifest for ``oci``, of the file `mlimg.manifest` for every other
    scheme. `location` is what stands between the scheme and the digest.
    """

    scheme: str
    location: str
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a model URI. Raises ValueError with the rule that is broken."""
        scheme, separator, rest = text.partition("://")
        if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
            raise ValueError(f"{text!r} is not a model URI such as oci://registry/repository/name:version")
        location, at, digest = rest.partition("@sha256:")
        uri = cls(scheme, location, Digest.parse(f"sha256:{digest}") if at else None)
        if scheme == "oci":
            uri.image()
        elif scheme == "file":
            uri.path()
        elif scheme in OBJECT_SCHEMES:
            uri.place()
        return uri

    @classmethod
    def of_image(cls, reference: ImageReference) -> Self:
        """The URI of a model image."""
        tag = f":{reference.tag}" if reference.tag else ""
        return cls("oci", f"{reference.registry}/{reference.repository}{tag}", reference.digest)

    def image(self) -> ImageReference:
        """The image an ``oci`` URI names. Raises ValueError for another scheme or a bad reference."""
        if self.scheme != "oci":
            raise ValueError(f"`{printable(str(self))}` does not name an image")
        reference = ImageReference.parse(self.location)
        if reference.tag is None and self.digest is None:
            raise ValueError(f"{self} needs a version: oci://registry/repository/name:version")
        return reference if self.digest is None else reference.with_digest(self.digest)

    def path(self) -> PurePosixPath:
        """The folder a ``file`` URI names. Raises ValueError for another scheme or a path with `..`."""
        path = PurePosixPath(self.location)
        if self.scheme != "file" or not path.is_absolute() or ".." in path.parts:
            raise ValueError(f"`{printable(str(self))}` does not name an absolute folder: file:///folder")
        return path

    def place(self) -> ObjectPlace:
        """The prefix that the URI of an object store names. Raises ValueError for another scheme or a bad name."""
        return ObjectPlace.parse(f"{self.scheme}://{self.location}")

    def pinned(self, digest: Digest) -> Self:
        """The same model pinned to `digest`."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.location}" + (f"@{self.digest}" if self.digest else "")
