"""Spec and facts in, everything decided out. Pure: nothing here looks anything up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mlimg.runtime.digest import Digest
from mlimg.runtime.reference import ImageReference
from mlimg.spec.schema import Pattern
from mlimg.template import Template


@dataclass(frozen=True, slots=True)
class Platform:
    """An OCI platform, such as ``linux/amd64`` or ``linux/arm/v7``."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class BaseImage:
    """The base a server is built on, resolved.

    `pinned` is what `FROM` gets: ``name@sha256:…`` for a registry base. A base that is only in the engine has no
    such name: `build_context` is then the private reference that ``--build-context`` maps the stage name to.
    `identity` is the digest of its canonical config: the same from either image store or a registry.
    """

    written: str
    pinned: str
    identity: Digest
    diff_ids: tuple[Digest, ...]
    build_context: ImageReference | None = None


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A file of a build context, in memory (server code and templates are small)."""

    path: PurePosixPath
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The server image to be: what the user fixed, and what `Dockerfile` rendering needs."""

    image: ImageReference  # tagged with the server's version
    version: str
    template: Template
    platform: Platform
    base_written: str
    requirements: tuple[str, ...]
    code: tuple[ContextFile, ...]  # paths relative to the image's code folder
    options: Mapping[str, Any]  # checked against the template, defaults filled in
    env: Mapping[str, str]
    index: str | None
    secrets: tuple[str, ...]
    inputs: Digest


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The model artifact to be."""

    name: str
    version: str
    framework: str
    format: str
    source: Path
    follow_links: bool
    store: str  # oci://… or an absolute folder
    store_is_named: bool
    allow_pickle: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided."""

    pattern: Pattern
    image: ImageReference  # tagged with the model's version
    server: ServerPlan
    model: ModelPlan
    insecure_registries: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
