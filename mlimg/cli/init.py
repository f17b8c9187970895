"""The command `mlimg init`."""

import json as json_text
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlimg.cli import session
from mlimg.cli.options import Debug, Json, Quiet, terminal_of
from mlimg.cli.units import kind
from mlimg.cli.written import write_text
from mlimg.record import make_folder, record_folder
from mlimg.runtime.errors import LocalIOError, MlimgError, ModelError, UsageError

if TYPE_CHECKING:
    from mlimg.formats import Detected
    from mlimg.template import Template

_MODEL_FOLDERS = ("model", "models")
SCHEMA_NAME = "schema.json"


def init(
    context: typer.Context,
    *,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="The model's file or folder, or the folder to look for it in.",
            show_default="current folder",
        ),
    ] = Path(),
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look at a model and write a first mlimg.yaml for it.

    The spec is written into the current folder.
    """
    from mlimg.spec.load import SPEC_NAME, json_schema

    terminal = terminal_of(context)
    folder = session.current_folder()
    if not path.exists():
        raise ModelError(f"{path}: is not there")
    model, detected = _find_model(path)
    template = _propose(detected)
    target = folder / SPEC_NAME
    try:
        write_text(target, _spec_text(folder, model, detected, template), replace=False)
        make_folder(record_folder(folder))
        write_text(record_folder(folder) / SCHEMA_NAME, json_text.dumps(json_schema(), indent=1) + "\n")
    except FileExistsError:
        raise UsageError(f"{SPEC_NAME}: is there already", hint="remove it first, or edit it") from None
    except OSError as error:
        raise LocalIOError(f"{error.filename}: {error.strerror}") from error
    looks = kind(detected.framework, detected.format) if detected else "a format that only you know"
    terminal.note(f"{model}: {looks}, served by the `{template.name}` template")
    trust = " and at `allow_pickle:`" if detected is not None and detected.needs_pickle else ""
    terminal.note(f"next: look at `image:`{trust} in mlimg.yaml, then `mlimg check`, `mlimg build --pattern in-image`")
    terminal.results({"spec": str(target)}, {"spec": str(target), "template": template.name, "model": str(model)})


def _find_model(path: Path) -> "tuple[Path, Detected | None]":
    """The model that `path` is or holds, and what it looks like. What a file is called decides nothing."""
    from mlimg.formats import FOLDERS

    if path.is_file():
        return path, _detect(path)
    here = path.resolve() == Path.cwd()
    if _has_main_file(path) and (detected := _detect(path)) and detected.format in FOLDERS:
        if here:
            raise ModelError(
                f"the folder is itself a model in {detected.format}: a spec in it would be part of the model",
                hint=f"from the folder above: `mlimg init {path.resolve().name}`",
            )
        return path, detected
    candidates = [path / name for name in _MODEL_FOLDERS if (path / name).is_dir()]
    inside = sorted(item for item in path.iterdir() if not item.name.startswith("."))
    candidates += [item for item in inside if item.is_dir() and item not in candidates and _has_main_file(item)]
    candidates += [item for item in inside if item.is_file()]
    for candidate in candidates:
        detected = _detect(candidate)
        if detected is not None:
            # A folder of one's own that is named on the command line is the model, with all that lies beside it.
            return (path if candidate.is_file() and not here else candidate), detected
    folders = [candidate for candidate in candidates if candidate.is_dir()]
    if not folders:
        raise ModelError(f"{path}: no model is here", hint="name it: `mlimg init path/to/model`")
    return folders[0], None


def _has_main_file(folder: Path) -> bool:
    """Whether a folder holds a file by which formats that are folders are known."""
    from mlimg.formats import MAIN_FILES

    return any((folder / name).is_file() for name in MAIN_FILES)


def _detect(path: Path) -> "Detected | None":
    from mlimg.formats import detect, models
    from mlimg.sources.local import open_source

    try:
        source = open_source(path, follow_links=False, allowed=())
        return next(iter(models(detect(source, source.inventory()))), None)
    except MlimgError:
        return None  # it cannot be a model as it is; `mlimg check` says why


def _propose(detected: "Detected | None") -> "Template":
    """The template made for this format, of pickles and the like for what is in it, else the one for own handlers."""
    from mlimg.formats import OBJECTS
    from mlimg.template import builtin_templates, serving_template

    name = None
    if detected is not None:
        name = serving_template(detected.format, detected.framework if detected.format in OBJECTS else "")
    return next(template for template in builtin_templates() if template.name == (name or "python"))


def _pin(detected: "Detected | None", template: "Template") -> str:
    """The requirement that gives the server what saved the model, where the template leaves that open."""
    from mlimg.formats import recommended_pin
    from mlimg.spec.requirement import required_package

    pin = recommended_pin(detected, template.requirements) if detected is not None else ""
    return pin if pin and required_package(pin) in map(required_package, template.requirements) else ""


def _spec_text(folder: Path, model: Path, detected: "Detected | None", template: "Template") -> str:
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "model"
    return "\n".join(_spec_lines(name, _written(model, folder), detected, template)) + "\n"


def _written(model: Path, folder: Path) -> str:
    absolute = model.absolute()
    inside = absolute.is_relative_to(folder)
    return f"./{absolute.relative_to(folder)}" if inside else str(absolute)


def _spec_lines(name: str, source: str, detected: "Detected | None", template: "Template") -> Iterator[str]:
    yield f"# yaml-language-server: $schema=.mlimg/{SCHEMA_NAME}"
    yield f"image: {name} # with a registry, such as registry.example.com/{name}, it can be pushed"
    yield "# pattern: in-image # or load; else given with --pattern"
    yield "server:"
    yield f"  template: {template.name}"
    if pin := _pin(detected, template):
        yield f"  requirements: [{pin}] # what saved the model"
    if template.options:
        yield "  # options: # with their defaults"
    for option in template.options.values():
        default = "" if option.default is None else f" {json_text.dumps(option.default)}"
        yield f"  #   {option.name}:{default} # {option.description}"
    if template.name == "python":
        yield "  code: ./serve # with a handler.py: load(model_dir, options) and predict(model, inputs)"
    yield "model:"
    yield '  version: "1"'
    yield f"  source: {json_text.dumps(source)}"
    if detected is not None and detected.needs_pickle:
        yield "  # allow_pickle: true # loading this format runs code that is in the file: only for models you trust"
