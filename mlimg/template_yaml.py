"""`template.yaml`: what a template says of itself. `docs/templates.md` lists its keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mlimg.runtime.errors import MlimgError, TemplateError, printable
from mlimg.runtime.variables import DEFAULT_PORT, READY_PATH
from mlimg.spec import grammar
from mlimg.spec.document import Document, Refused, Unclear, dotted, parse
from mlimg.spec.problems import Place
from mlimg.spec.requirement import requirement

MANIFEST: Final = "template.yaml"
_OUR_WORDS: Final = {"missing": "is missing", "extra_forbidden": "unknown key"}
Kind = Literal["text", "integer", "number", "boolean"]


@dataclass(frozen=True, slots=True)
class Option:
    """A setting of a template that `server.options` may change."""

    name: str
    kind: Kind
    required: bool
    default: Any = None
    choices: tuple[Any, ...] = ()
    description: str = ""

    @property
    def expected(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return "one of " + ", ".join(f"`{choice}`" for choice in self.choices)
        return {"text": "a text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}[
            self.kind
        ]

    def parse(self, value: object) -> Any:
        """Return `value` as this option's type; text is read as `--set` gives it. Raises ValueError."""
        try:
            parsed = _CONVERSIONS[self.kind](value)
        except (ValueError, OverflowError):
            parsed = None
        if parsed is None or (self.choices and parsed not in self.choices):
            raise ValueError(f"{grammar.shown(str(value))} is not {self.expected}")
        return parsed


def _to_text(value: object) -> str | None:
    return grammar.text_line(value) if isinstance(value, str) else None


def _to_boolean(value: object) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _to_integer(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if len(value) < 20 and value.isascii() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _to_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    number = float(value)
    return number if abs(number) < float("inf") else None  # neither infinite nor NaN: JSON knows none


_CONVERSIONS: Final = {"text": _to_text, "integer": _to_integer, "number": _to_number, "boolean": _to_boolean}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Version = Annotated[str, AfterValidator(grammar.version)]
Line = Annotated[str, AfterValidator(grammar.text_line)]
Requirement = Annotated[str, AfterValidator(requirement)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
Indexes = dict[Annotated[str, AfterValidator(grammar.package_name)], Annotated[str, AfterValidator(grammar.index_url)]]


class OptionEntry(_Section):
    """One of `options:`."""

    type: Kind = "text"
    default: str | int | float | bool | None = None
    required: bool = True  # of an option without default
    choices: tuple[str | int | float | bool, ...] = ()
    description: Line = ""

    @property
    def variants(self) -> Sequence[str]:
        """The values by which `variants:` may tell what goes with them."""
        return ["true", "false"] if self.type == "boolean" else [variant_key(choice) for choice in self.choices]

    def named(self, name: str) -> Option:
        """The option. Raises ValueError when its default or a choice is not of its type."""
        required = self.required and self.default is None
        any_of_type = Option(name, self.type, required, description=self.description)
        option = replace(any_of_type, choices=tuple(any_of_type.parse(choice) for choice in self.choices))
        return option if self.default is None else replace(option, default=option.parse(self.default))


def variant_key(value: object) -> str:
    """The name of an option's value in `variants:`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Variant(_Section):
    """What a choice of an option changes: the base, the formats, and packages beside the template's own, from where."""

    base: Annotated[str, AfterValidator(grammar.image_reference)] | None = None
    requirements: tuple[Requirement, ...] = ()
    indexes: Indexes = {}
    formats: tuple[Name, ...] = ()


class ModelRequirements(_Section):
    """Where a model says what packages it needs: a file beside its main file, and what is installed instead of some."""

    file: Annotated[str, AfterValidator(grammar.path)]
    instead: dict[
        Annotated[str, AfterValidator(grammar.package_name)], Annotated[str, AfterValidator(grammar.package_name)]
    ] = {}


class Health(_Section):
    """Where the server answers, and where it says that it is ready."""

    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PORT
    ready: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~/-]*$")] = READY_PATH


Options = dict[Annotated[str, AfterValidator(grammar.option_name)], OptionEntry]
Variants = dict[str, dict[str, Variant]]


class ServingOptions(_Section):
    """The options that every template has whose server is ours."""

    options: Options
    variants: Variants

    def named_options(self) -> Mapping[str, Option]:
        """The options by name. Raises ValueError."""
        return {name: entry.named(name) for name, entry in self.options.items()}


class Manifest(_Section):
    """A whole `template.yaml`."""

    name: Name
    version: Version
    description: Line
    base: Annotated[str, AfterValidator(grammar.image_reference)]
    frameworks: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")], ...] = ()
    framework_versions: tuple[Version, ...] = ()
    formats: tuple[Name, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    model_requirements: ModelRequirements | None = None
    indexes: Indexes = {}
    options: Options = {}
    variants: Variants = {}
    size_mib: Annotated[int, Field(gt=0)] | None = None
    rendered: tuple[FileName, ...] = ()
    fetches: bool = True
    command: Annotated[tuple[Line, ...], Field(min_length=1)] = ("serve",)
    health: Health = Health()

    def named_options(self) -> Mapping[str, Option]:
        """The options by name. Raises ValueError."""
        return {name: entry.named(name) for name, entry in self.options.items()}


def read_manifest(data: bytes, name: str) -> Manifest:
    """Read a `template.yaml`. Raises TemplateError with every problem and its place, LimitError for a bomb."""
    try:
        document = parse(data, name)
    except MlimgError as error:
        raise TemplateError(error.message, hint=error.hint, log=error.log) from error
    problems = [str(problem) for problem in document.problems] or _unclear(document, document.root, ())
    if not problems:
        try:
            manifest = Manifest.model_validate(document.root)
        except ValidationError as error:
            problems = [
                _problem(document, item["loc"], _OUR_WORDS.get(item["type"], item["msg"]))
                for item in error.errors(include_url=False)
            ]
        else:
            problems = _bad_options(document, manifest)
    if problems:
        raise TemplateError("\n".join(sorted(problems)), hint="docs/templates.md lists the keys of a template.yaml")
    return manifest


def read_serving_options(data: bytes, name: str) -> ServingOptions:
    """Read the options that ship with mlimg."""
    return ServingOptions.model_validate(parse(data, name).root)


def _bad_options(document: Document, manifest: Manifest) -> list[str]:
    problems = []
    for name, entry in manifest.options.items():
        try:
            entry.named(name)
        except ValueError as error:
            problems.append(_problem(document, ("options", name), str(error)))
    return problems + _bad_variants(document, manifest) + _needs_runtime(document, manifest)


def _bad_variants(document: Document, manifest: Manifest) -> list[str]:
    problems = []
    for name, variants in manifest.variants.items():
        entry = manifest.options.get(name)
        choices = entry.variants if entry else []
        for choice in variants.keys() - set(choices):
            expected = f"one of {', '.join(choices)}" if choices else f"an option `{name}` with choices"
            problems.append(_problem(document, ("variants", name, choice), f"expected {expected}"))
    return problems


def _needs_runtime(document: Document, manifest: Manifest) -> list[str]:
    """What a server without our runtime cannot have."""
    if manifest.fetches:
        return []
    problems = []
    if manifest.command[0] in {"serve", "exec"}:
        expected = "expected the arguments of the server: without `fetches` there is no runtime that could be told"
        problems.append(_problem(document, ("command",), f"{expected} `{manifest.command[0]}`"))
    packages: dict[tuple[str, ...], object] = {
        ("requirements",): manifest.requirements,
        ("model_requirements",): manifest.model_requirements,
        **{
            ("variants", option, choice, "requirements"): variant.requirements
            for option, variants in manifest.variants.items()
            for choice, variant in variants.items()
        },
    }
    message = "without `fetches` no packages are installed"
    return problems + [_problem(document, path, message) for path, named in packages.items() if named]


def _problem(document: Document, path: tuple[int | str, ...], message: str) -> str:
    """One line: place, key, message. pydantic's paths name types too, which are no keys of the document."""
    known = tuple(path)
    while known and known not in document.values:
        known = known[:-1]
    place = document.values.get(known) or Place.in_file(document.name, 1, 1)
    return printable(f"{place}: {dotted(path)}: {message.removeprefix('Value error, ')}")


def _unclear(document: Document, value: object, path: tuple[int | str, ...]) -> list[str]:
    """Scalars that YAML readers disagree about."""
    if isinstance(value, Unclear | Refused):
        text = value.text if isinstance(value, Unclear) else ""
        return [_problem(document, path, f"{grammar.shown(text)} is not the same to everyone who reads YAML: quote it")]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    return [problem for key, item in items for problem in _unclear(document, item, (*path, key))]
