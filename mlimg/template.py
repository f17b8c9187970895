"""A server template: a folder that says how a server is made. `docs/templates.md` shows how to write one.

A template is read whole and once, so that what is built is what was checked, whatever happens to the folder.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

import mlimg
from mlimg.files import ContextFile, read_context_file, read_context_folder
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import ContextError, LimitError, SpecError, TemplateError, printable
from mlimg.runtime.variables import DEFAULT_GRPC_PORT
from mlimg.template_yaml import (
    MANIFEST,
    Health,
    Manifest,
    ModelRequirements,
    Option,
    ServingOptions,
    Variant,
    read_manifest,
    read_serving_options,
    variant_key,
)

DOCKERFILE: Final = "Dockerfile.j2"
PYTHON_DOCKERFILE: Final = f"_python/{DOCKERFILE}"
SERVING_OPTIONS: Final = "_python/options.yaml"
HANDLER: Final = "handler.py"
IMAGE_HOME: Final = PurePosixPath("image/opt/mlimg")  # in the context; /opt/mlimg in the image
# What the runtime in the image imports, as ranges: resolved together with the template's and the user's.
RUNTIME_REQUIREMENTS: Final = ("urllib3>=2.5",)
# And what our server imports, where the command is not another's.
SERVER_REQUIREMENTS: Final = (
    "httptools>=0.6.4",
    "msgspec>=0.19",
    "prometheus-client>=0.21",
    "starlette>=0.46",
    "uvicorn>=0.34",
)
OBJECT_STORE_REQUIREMENTS: Final = ("obstore>=0.12",)  # 15 MB: only where model.store is an object store

_MAX_FILES: Final = 1000
_MAX_BYTES: Final = 64 * 1024 * 1024
_NOT_COPIED: Final = frozenset({MANIFEST, "README.md"})
# Names under /opt/mlimg that are not the template's.
_RESERVED: Final = frozenset({"mlimg", "code", "server.json"})


@dataclass(frozen=True, slots=True)
class Template:
    """A template folder, read and checked.

    `sources` are the Jinja texts that can be rendered, included and extended, `own_files` what the folder brings
    into a build context. A built-in template has no `digest`: its name and version identify it.
    """

    name: str
    version: str
    description: str
    folder: Path
    base: str
    requirements: tuple[str, ...]
    indexes: Mapping[str, str]  # of packages that have one of their own
    frameworks: tuple[str, ...]
    framework_versions: tuple[str, ...]
    formats: tuple[str, ...]
    options: Mapping[str, Option]
    serving: Mapping[str, Option]  # options that every server of ours has, whatever it serves
    variants: Mapping[str, Mapping[str, Variant]]  # by option and its choice
    size_mib: int | None  # what a server image of it may weigh, with its defaults
    command: tuple[str, ...]
    health: Health
    sources: Mapping[str, str]
    own_files: tuple[ContextFile, ...]
    rendered: tuple[str, ...]  # names of files that are rendered into the image's /opt/mlimg
    fetches: bool  # whether our runtime is in the image; else the model is in it, too, or mounted
    digest: Digest | None = None
    model_requirements: ModelRequirements | None = None

    @property
    def files(self) -> tuple[ContextFile, ...]:
        """What lies in every build context whatever the plan: build scripts, the runtime, the template's own."""
        shared = shared_files() if self.fetches else ()
        return tuple(sorted([*shared, *self.own_files], key=lambda file: file.path))

    @property
    def builtin(self) -> bool:
        """Whether the template ships with mlimg."""
        return self.digest is None

    @property
    def identity(self) -> str:
        """What tells this template from others: name and version of a built-in one, else the digest of its files."""
        return f"{self.name}@{self.version}" if self.digest is None else self.digest.text

    @property
    def needs_handler(self) -> bool:
        """Whether the server is ours, and so lives by a handler; ``exec`` starts another."""
        return self.fetches and self.command[0] == "serve"

    def check_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return all options typed, defaults filled in. Text is read as the option's type, as `--set` gives it.

        Raises SpecError with every problem.
        """
        problems = []
        known = {**self.serving, **self.options}
        checked = {name: option.default for name, option in known.items()}
        for name, value in options.items():
            key = f"server.options.{printable(name)}"
            if name not in known:
                problems.append(f"{key}: template `{self.name}` has no such option{_suggest(name, known)}")
                continue
            try:
                checked[name] = known[name].parse(value)
            except ValueError as error:
                problems.append(f"{key}: {error}")
        for name, option in known.items():
            if option.required and name not in options:
                problems.append(f"server.options.{name}: template `{self.name}` needs it: {option.expected}")
        if problems:
            names = ", ".join(known) or "none"
            raise SpecError("\n".join(problems), hint=f"options of template `{self.name}`: {names}")
        return checked

    def chosen(self, options: Mapping[str, Any]) -> "Template":
        """The template with the base, the formats, the packages and their indexes that go with its options' values."""
        template = self
        for name, variants in self.variants.items():
            if variant := variants.get(variant_key(options[name])):
                template = replace(
                    template,
                    base=variant.base or template.base,
                    formats=variant.formats or template.formats,
                    requirements=(*template.requirements, *variant.requirements),
                    indexes={**template.indexes, **variant.indexes},
                )
        return template

    def grpc_port(self, options: Mapping[str, Any]) -> int | None:
        """Where our server speaks gRPC, if it does; an option of that name of another's server is another thing."""
        return DEFAULT_GRPC_PORT if "grpc" in self.serving and options.get("grpc") else None

    def check_code(self, code: Sequence[ContextFile]) -> None:
        """See that there is a handler, the user's or the template's. Raises SpecError."""
        own = IMAGE_HOME / HANDLER
        if (
            self.needs_handler
            and not any(file.path == own for file in self.own_files)
            and not any(file.path == PurePosixPath(HANDLER) for file in code)
        ):
            raise SpecError(
                f"server.code: template `{self.name}` needs a handler.py there",
                hint="it has two functions: load(model_dir, options) and predict(model, inputs)",
            )


def find_template(name: str, resolve_path: Callable[[str], Path]) -> Template:
    """Read a template: a built-in one by its name, or a folder, which `resolve_path` finds for its written path.

    Raises TemplateError, LimitError, LocalIOError, and what `resolve_path` raises.
    """
    if "/" in name:
        return _read(resolve_path(name), builtin=False)
    folders = _builtin_folders()
    if name not in folders:
        raise TemplateError(
            f"server.template: unknown template `{printable(name)}`{_suggest(name, folders)}",
            hint="`mlimg templates` lists all of them; a folder of yours is written as ./folder",
        )
    return _read(folders[name], builtin=True)


def builtin_templates() -> tuple[Template, ...]:
    """The templates that ship with mlimg, sorted by name."""
    return tuple(_read(folder, builtin=True) for folder in _builtin_folders().values())


def serving_template(format: str, framework: str = "") -> str | None:  # noqa: A002 (the manifest's word)
    """The name of a built-in template that serves a format, of a framework; of others' servers where none is ours."""
    serving = [template for template in builtin_templates() if format in template.formats]
    ours = [template for template in serving if template.needs_handler]
    return next(
        (template.name for template in ours or serving if not framework or framework in template.frameworks), None
    )


def _builtin_folders() -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(templates_folder().glob(f"*/{MANIFEST}"))}


def templates_folder() -> Path:
    """Where the built-in templates are: inside an installed package, beside it in a checkout."""
    package = Path(mlimg.__file__).parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


def _read(folder: Path, *, builtin: bool) -> Template:
    name = folder.name
    try:
        own = {file.path: file for file in _own_files(folder)}
    except ContextError as error:
        raise TemplateError(f"template `{printable(name)}`: {error.message}", hint=error.hint) from error
    written = own.get(PurePosixPath(MANIFEST))
    if written is None:
        raise TemplateError(
            f"template `{printable(name)}`: there is no {MANIFEST} in {printable(str(folder))}",
            hint="`mlimg templates copy sklearn ./server` makes one to start from",
        )
    manifest = read_manifest(written.data, str(folder / MANIFEST))
    sources = {str(path): _decode(folder, file) for path, file in own.items() if path.suffix == ".j2"}
    _check_files(manifest, sources, own)
    python = (templates_folder() / PYTHON_DOCKERFILE).read_text(encoding="utf-8")
    sources |= {PYTHON_DOCKERFILE: python, DOCKERFILE: sources.get(DOCKERFILE, python)}
    copied = [
        replace(file, path=IMAGE_HOME / path)
        for path, file in own.items()
        if path.suffix != ".j2" and str(path) not in _NOT_COPIED
    ]
    return _template(manifest, folder, sources, tuple(copied), None if builtin else _digest(own.values()))


def _template(
    manifest: Manifest,
    folder: Path,
    sources: Mapping[str, str],
    own_files: tuple[ContextFile, ...],
    digest: Digest | None,
) -> Template:
    own = manifest.named_options()
    is_ours = manifest.fetches and manifest.command[0] == "serve"
    serving = serving_options() if is_ours else ServingOptions(options={}, variants={})
    return Template(
        name=manifest.name,
        version=manifest.version,
        description=manifest.description,
        folder=folder,
        base=manifest.base,
        requirements=manifest.requirements,
        indexes=manifest.indexes,
        frameworks=manifest.frameworks,
        framework_versions=manifest.framework_versions,
        formats=manifest.formats,
        options=own,
        serving={name: own.get(name, option) for name, option in serving.named_options().items()},
        variants={**serving.variants, **manifest.variants},
        size_mib=manifest.size_mib,
        command=manifest.command,
        health=manifest.health,
        sources=sources,
        own_files=own_files,
        rendered=manifest.rendered,
        fetches=manifest.fetches,
        digest=digest,
        model_requirements=manifest.model_requirements,
    )


def _check_files(manifest: Manifest, sources: Mapping[str, str], own: Mapping[PurePosixPath, ContextFile]) -> None:
    """See that the files that template.yaml speaks of are there. Raises TemplateError."""
    if not manifest.fetches and DOCKERFILE not in sources:
        raise TemplateError(
            f"template `{manifest.name}`: there is no {DOCKERFILE}, and `fetches: false` leaves out our server",
            hint="docs/templates.md has one to start from",
        )
    for name in manifest.rendered:
        if f"{name}.j2" not in sources:
            raise TemplateError(f"template `{manifest.name}`: there is no {name}.j2, and `rendered` names {name}")
        if name in _RESERVED or PurePosixPath(name) in own:
            raise TemplateError(f"template `{manifest.name}`: `rendered` names {name}, which is something else already")


def _own_files(folder: Path) -> Iterator[ContextFile]:
    """The files of a template's folder, as many as a template has."""
    count = size_bytes = 0
    for file in read_context_folder(folder):
        if file.path.parts[0] in _RESERVED:
            raise ContextError(f"`{file.path.parts[0]}` is the name of something else in the image", hint="rename it")
        count, size_bytes = count + 1, size_bytes + len(file.data)
        if count > _MAX_FILES or size_bytes > _MAX_BYTES:
            raise LimitError(
                f"{printable(str(folder))}: a template has at most {_MAX_FILES} files and {_MAX_BYTES // 2**20} MiB"
            )
        yield file


@cache
def serving_options() -> ServingOptions:
    """The options that every template has whose server is ours."""
    path = templates_folder() / SERVING_OPTIONS
    return read_serving_options(path.read_bytes(), str(path))


@cache
def shared_files() -> tuple[ContextFile, ...]:
    """What all servers have: the scripts of the build stage, and the part of mlimg that ships in images."""
    scripts = (templates_folder() / "_python" / "build").glob("*.py")
    package = Path(mlimg.__file__).parent
    runtime = [
        package / "__init__.py",
        *(path for kind in ("*.py", "*.html") for path in (package / "runtime").rglob(kind)),
    ]
    return (
        *(read_context_file(path, PurePosixPath("build", path.name)) for path in scripts),
        *(read_context_file(path, IMAGE_HOME / "mlimg" / path.relative_to(package).as_posix()) for path in runtime),
    )


def _digest(files: Iterable[ContextFile]) -> Digest:
    entries = {str(file.path): [file.mode, Digest.of(file.data).text] for file in files}
    entries.pop("README.md", None)
    return Digest.of(canonical_json(entries))


def _decode(folder: Path, file: ContextFile) -> str:
    try:
        return file.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{printable(str(folder / file.path))} is not UTF-8") from error


def _suggest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
