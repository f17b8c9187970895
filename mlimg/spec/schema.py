"""What a person may write in `mlimg.yaml`, typed.

`load.py` reads text into these values and keeps where each came from; nothing else builds them. The descriptions
are what editors show, by the JSON Schema that `mlimg check --schema` prints; `docs/spec.md` says the same at length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo

from mlimg.sources.address import is_remote
from mlimg.spec import grammar
from mlimg.spec.pattern import Pattern as Pattern  # noqa: PLC0414 (part of the schema, told apart for start-up)
from mlimg.spec.requirement import requirement, requirements_file

MAX_OPTION_INTEGER: Final = 2**53  # JSON readers in the image and elsewhere agree on integers up to here


def _version_text(value: object) -> object:
    """A plain integer is taken as it is written: `version: 3`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _option_value(value: object) -> object:
    if isinstance(value, str):
        return grammar.text_line(value)
    if isinstance(value, int):  # true and false are integers to Python
        if abs(value) > MAX_OPTION_INTEGER:
            raise ValueError(f"an option's integer is at most {MAX_OPTION_INTEGER}; quote it if it is text")
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    raise ValueError("expected text, true, false, a number, or a list of these")


ImageName = Annotated[str, AfterValidator(grammar.image_name)]
BaseImage = Annotated[str, AfterValidator(grammar.image_reference)]
Version = Annotated[
    str,
    AfterValidator(grammar.version),
    BeforeValidator(_version_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"},
                {"type": "integer", "minimum": 0},
            ]
        }
    ),
]
ModelName = Annotated[str, AfterValidator(grammar.model_name)]
TemplateName = Annotated[str, AfterValidator(grammar.template)]
PathText = Annotated[str, AfterValidator(grammar.path)]
SourceText = Annotated[str, AfterValidator(grammar.source)]
FilePattern = Annotated[str, AfterValidator(grammar.pattern)]
Sha256 = Annotated[str, AfterValidator(grammar.sha256)]
StoreText = Annotated[str, AfterValidator(grammar.store)]
Requirements = Annotated[
    Annotated[tuple[Annotated[str, AfterValidator(requirement)], ...], Tag("list")]
    | Annotated[str, AfterValidator(requirements_file), Tag("file")],
    Discriminator(lambda value: "file" if isinstance(value, str) else "list"),
]
OptionName = Annotated[str, AfterValidator(grammar.option_name)]
OptionScalar = Annotated[
    Any, AfterValidator(_option_value), WithJsonSchema({"type": ["string", "boolean", "integer", "number"]})
]
OptionValue = Annotated[
    Annotated[tuple[OptionScalar, ...], Tag("list")] | Annotated[OptionScalar, Tag("scalar")],
    Discriminator(lambda value: "list" if isinstance(value, tuple | list) else "scalar"),
]
EnvName = Annotated[str, AfterValidator(grammar.env_name)]
EnvValue = Annotated[str, AfterValidator(grammar.text_line)]
PlatformText = Annotated[str, AfterValidator(grammar.platform)]
IndexUrl = Annotated[str, AfterValidator(grammar.index_url)]
PackageName = Annotated[str, AfterValidator(grammar.package_name)]
SecretId = Annotated[str, AfterValidator(grammar.secret_id)]
RegistryHost = Annotated[str, AfterValidator(grammar.registry_host)]


class Section(BaseModel):
    """A mapping of the spec: closed, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ServerSpec(Section):
    """The server that answers predictions: an image of its own, the same for every model."""

    template: TemplateName = Field(description="A built-in template (`mlimg templates` lists them) or ./folder of one.")
    image: ImageName | None = Field(
        default=None, description="Where the server image goes, without tag. Default: the image's name with -server."
    )
    version: Version | None = Field(
        default=None,
        description="The server image's tag. Default: 12 digits that follow from what the server is made of.",
    )
    base: BaseImage | None = Field(default=None, description="The base image. Default: the template's.")
    requirements: Requirements = Field(
        default=(), description="Python packages beside the template's own, as a list, or a .txt or .lock file of them."
    )
    code: PathText | None = Field(
        default=None, description="A file or folder of Python code, importable in the server; its handler.py wins."
    )
    options: dict[OptionName, OptionValue] = Field(
        default_factory=dict, description="Options of the template; its README and template.yaml list them."
    )
    env: dict[EnvName, EnvValue] = Field(
        default_factory=dict, description="Environment variables fixed in the server image. Quote numbers."
    )


class ModelSpec(Section):
    """The trained model."""

    name: ModelName | None = Field(
        default=None, description="The model's name in stores and URLs. Default: the last part of the image's name."
    )
    version: Version = Field(description="The model's version: the image's tag. Quote it unless it is a whole number.")
    source: SourceText = Field(
        description="The model's file, the folder of its files, or where they are: https, s3, gs, az, oci, hf, models."
    )
    include: Annotated[tuple[FilePattern, ...], AfterValidator(grammar.distinct)] = Field(
        default=(), description="Patterns of the files that are the model, such as *.json. Default: all of them."
    )
    exclude: Annotated[tuple[FilePattern, ...], AfterValidator(grammar.distinct)] = Field(
        default=(), description="Patterns of files beside the model that are no part of it; they win."
    )
    sha256: Sha256 | None = Field(
        default=None, description="The sha256 of the one file behind an https address; required there."
    )
    store: StoreText | None = Field(
        default=None,
        description="Where model artifacts go: oci://registry/repository or a folder. Default: .mlimg/store.",
    )
    allow_pickle: bool = Field(
        default=False, description="Take model files that run code when they are loaded: pickle, joblib."
    )
    follow_links: bool = Field(default=False, description="Follow symbolic links to files in the project.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """See that the settings of the source are those of its kind. Raises ValueError."""
        if self.source.startswith(("https://", "http://")):
            if self.sha256 is None:
                raise ValueError("sha256 is missing: what an https address gives today is not what it gives tomorrow")
        elif self.sha256 is not None:
            raise ValueError("sha256 is for an https address; other sources tell their own, or are hashed here")
        if self.follow_links and is_remote(self.source):
            raise ValueError("follow_links is for a model on this machine")
        return self


class BuildSpec(Section):
    """How images are built."""

    platform: PlatformText | None = Field(
        default=None, description="The server's platform, such as linux/amd64. Default: the engine's own."
    )
    index: IndexUrl | None = Field(default=None, description="The Python package index. Default: PyPI.")
    indexes: dict[PackageName, IndexUrl] = Field(
        default_factory=dict, description="Indexes of single packages, such as torch. Default: the template's."
    )
    secrets: Annotated[tuple[SecretId, ...], AfterValidator(grammar.distinct)] = Field(
        default=(), description="Ids of build secrets; their files come from --secret ID=FILE or MLIMG_SECRET_ID."
    )
    insecure_registries: Annotated[tuple[RegistryHost, ...], AfterValidator(grammar.distinct)] = Field(
        default=(), description="Registries spoken to by plain HTTP, as host[:port]. Loopback needs no entry."
    )


class Spec(Section):
    """A whole `mlimg.yaml`: which server, which model, and where what is made of them goes."""

    image: ImageName = Field(description="Where the image with the model in it goes, without tag.")
    # The one text that YAML readers do not make: strict mode would ask for an instance of the enum.
    pattern: Annotated[Pattern, Field(strict=False)] | None = Field(
        default=None, description="How the model reaches the server; --pattern wins."
    )
    server: ServerSpec = Field(description="The server image.")
    model: ModelSpec = Field(description="The model.")
    build: BuildSpec = Field(default_factory=BuildSpec, description="How the server image is built.")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the spec that holds a value, such as ``server.version``."""

    name: str
    field: FieldInfo


def keys(section: type[Section] = Spec, prefix: str = "") -> Iterator[Key]:
    """Every key that holds a value, sections opened, in the order of the schema."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield Key(f"{prefix}{name}", field)
