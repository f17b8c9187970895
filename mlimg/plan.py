"""Spec and facts in, everything decided out. Pure: nothing here looks anything up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from mlimg.files import ContextFile
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import SpecError
from mlimg.runtime.reference import PACK_SUFFIX, SERVER_INPUTS_LABEL, ImageReference, is_object_store
from mlimg.spec.requirement import required_package
from mlimg.spec.schema import Pattern, Spec
from mlimg.template import Template


@dataclass(frozen=True, slots=True)
class Platform:
    """An OCI platform, such as ``linux/amd64`` or ``linux/arm/v7``."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``os/architecture[/variant]``. Raises ValueError for another shape."""
        os, architecture, *variant = text.split("/")
        return cls(os, architecture, *variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


_INDEXES: Final = "build.indexes."
DEFAULT: Final = "default"  # the origin of a setting that nobody wrote
# What a release is published for where the spec does not say: what nearly all servers run.
PUBLISHED_PLATFORM: Final = Platform("linux", "amd64")


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
    indexes: Mapping[str, str] = field(default_factory=dict)  # of packages that have one of their own
    fetches_objects: bool = False  # the spec's store is an object store: the server can read those
    inputs_of_other_store: Digest | None = None  # were the store of the other kind and all else the same

    def difference(self, theirs: str) -> str:
        """How a published server, whose inputs are `theirs`, differs from this one, as far as two digests can tell."""
        if self.inputs_of_other_store is None or theirs != self.inputs_of_other_store.text:
            return f"its {SERVER_INPUTS_LABEL} is {theirs or 'not set'}, this spec's is {self.inputs}"
        kinds = ("no object store", "an object store, which takes obstore in the server")
        ours, before = (kinds[self.fetches_objects], kinds[not self.fetches_objects])
        return f"model.store was {before}, and is {ours}; all else is the same"


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The model artifact to be."""

    name: str
    version: str
    framework: str
    format: str
    source: str  # an absolute path, or the address of a remote model
    follow_links: bool
    store: str  # oci://… or an absolute folder
    store_is_named: bool
    allow_pickle: bool

    def leaves(self, *, push: bool | None) -> bool:
        """Whether the load pattern sends the model to the store that the spec names, and not to the local one."""
        return self.store_is_named and push is not False


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of the spec as it was decided: its value, and who wrote that, such as ``mlimg.yaml:4:12`` or ``--set``."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided."""

    pattern: Pattern
    image: ImageReference  # tagged with the model's version
    server: ServerPlan
    model: ModelPlan
    insecure_registries: tuple[str, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Material:
    """What the files that the spec names say, read once: what came of them later is decided from this alone."""

    template: Template
    options: Mapping[str, Any]
    requirements: tuple[str, ...]
    code: tuple[ContextFile, ...]
    source: str  # an absolute path, or the address of a remote model
    framework: str  # "" as long as a remote model is not listed, as the format
    format: str
    store: str | None = None  # oci://… or an absolute folder, where the spec names one

    def unreachable(self, pattern: Pattern | None) -> str:
        """What whoever runs the server has to see to, since it cannot fetch its model itself; empty where it can."""
        if self.template.fetches or pattern is not Pattern.LOAD:
            return ""
        return (
            f"the server of template `{self.template.name}` cannot fetch a model, and takes no MLIMG_MODEL: mount the "
            "model's folder at /models, or choose the pattern in-image"
        )

    @property
    def fetches_objects(self) -> bool:
        """Whether the spec's store is an object store: the server then has what it needs to fetch from one."""
        return is_object_store(self.store or "")


def resolve(
    spec: Spec,
    material: Material,
    platform: Platform,
    *,
    pattern: Pattern,
    local_store: Path,
    origins: Mapping[str, str],
) -> Plan:
    """Decide everything, from values alone.

    `local_store` takes the model where the spec names no store; `origins` says where each written setting came from.
    Raises SpecError for settings that are fine alone but not together.
    """
    server = _resolve_server(spec, material, platform)
    model_name = spec.model.name or ImageReference.parse(spec.image).repository.rsplit("/", 1)[-1]
    model = ModelPlan(
        name=model_name,
        version=spec.model.version,
        framework=material.framework,
        format=material.format,
        source=material.source,
        follow_links=spec.model.follow_links,
        store=material.store or str(local_store),
        store_is_named=material.store is not None,
        allow_pickle=spec.model.allow_pickle,
    )
    image = ImageReference.parse(spec.image)
    try:
        image.with_tag(f"{model.version}-{server.version}")
    except ValueError as error:
        raise SpecError(f"model.version and server.version together make the tag of the image: {error}") from error
    try:
        image.with_tag(f"{model.version}{PACK_SUFFIX}")
    except ValueError as error:
        raise SpecError(f"model.version and `{PACK_SUFFIX}` make the tag of the model's artifact: {error}") from error
    if model.version.endswith(PACK_SUFFIX):
        raise SpecError(f"model.version ends with `{PACK_SUFFIX}`, as the tags of model artifacts do")
    return Plan(
        pattern=pattern,
        image=image.with_tag(model.version),
        server=server,
        model=model,
        insecure_registries=tuple(spec.build.insecure_registries),
        settings=_settings(spec, server, model, origins),
    )


def server_inputs(spec: Spec, material: Material, platform: Platform) -> Digest:
    """The identity of what the user fixed of a server: equal inputs, equal digest, wherever they are computed.

    The base counts as it is written and the index and the secrets not at all: a moved tag or another mirror
    does not make a published server another one. Of the store counts whether it is an object store.
    """
    return _server_inputs(spec, material, platform, fetches_objects=material.fetches_objects)


def _server_inputs(spec: Spec, material: Material, platform: Platform, *, fetches_objects: bool) -> Digest:
    return Digest.of(
        canonical_json(
            {
                **({"fetchesObjects": True} if fetches_objects else {}),
                "template": material.template.identity,
                "requirements": list(material.requirements),
                "code": {str(file.path): [file.mode, Digest.of(file.data).text] for file in material.code},
                "options": dict(material.options),
                "env": dict(spec.server.env),
                "base": spec.server.base or material.template.base,
                "platform": str(platform),
            }
        )
    )


def _resolve_server(spec: Spec, material: Material, platform: Platform) -> ServerPlan:
    inputs = server_inputs(spec, material, platform)
    version = spec.server.version or inputs.hex[:12]
    name = spec.server.image or f"{spec.image}-server"
    return ServerPlan(
        image=ImageReference.parse(name).with_tag(version),
        version=version,
        template=material.template,
        platform=platform,
        base_written=spec.server.base or material.template.base,
        requirements=material.requirements,
        code=material.code,
        options=material.options,
        env=dict(spec.server.env),
        index=spec.build.index,
        indexes={**material.template.indexes, **spec.build.indexes},
        secrets=tuple(spec.build.secrets),
        inputs=inputs,
        fetches_objects=material.fetches_objects,
        inputs_of_other_store=_server_inputs(spec, material, platform, fetches_objects=not material.fetches_objects),
    )


def _settings(spec: Spec, server: ServerPlan, model: ModelPlan, origins: Mapping[str, str]) -> Mapping[str, Setting]:
    """Every setting that is written, or that the template or a default decided. No secret has a value here."""
    template = f"template {server.template.name}"
    origins = {_settled(key): origin for key, origin in origins.items()}
    decided = {
        **{f"{_INDEXES}{name}": (url, template) for name, url in server.indexes.items()},
        "build.platform": (str(server.platform), DEFAULT),
        "model.name": (model.name, DEFAULT),
        "model.store": (model.store, DEFAULT),
        "server.base": (server.base_written, template),
        "server.image": (server.image.name, DEFAULT),
        "server.version": (server.version, DEFAULT),
        **{f"server.options.{name}": (value, template) for name, value in server.options.items()},
    }
    settings = {key: Setting(value, origins.get(key, origin)) for key, (value, origin) in decided.items()}
    for key, origin in origins.items():
        settings.setdefault(key, Setting(_value(spec, key), origin))
    if "server.requirements" in settings:
        settings["server.requirements"] = Setting(list(server.requirements), origins["server.requirements"])
    return dict(sorted(settings.items()))


def _settled(key: str) -> str:
    """A key as the plan has it: packages by the names that indexes have."""
    return f"{_INDEXES}{required_package(key.removeprefix(_INDEXES))}" if key.startswith(_INDEXES) else key


def _value(spec: Spec, key: str) -> Any:
    """The value at a dotted key; names of variables and options have no dots."""
    value: Any = spec.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
