"""From `mlimg.yaml` and the settings over it to a `Spec`; every problem is told at once, with its place."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from mlimg.sources.address import is_remote
from mlimg.spec.confine import Folders, OutsideError
from mlimg.spec.document import Document, KeyPath, dotted, parse, read_spec_file
from mlimg.spec.explain import explain
from mlimg.spec.override import NO_OVERRIDES, Overrides, lay_over
from mlimg.spec.problems import Code, InvalidSpecError, Place, Problem
from mlimg.spec.schema import Spec
from mlimg.spec.several import MODELS, problems_of, shown_key, views, whole

__all__ = ["SPEC_NAME", "LoadedSpec", "Overrides", "json_schema", "load_spec"]

SPEC_NAME: Final = "mlimg.yaml"

# The keys that can name a file or folder here, and which of their texts do.
_PATH_KEYS: Final[Mapping[str, Callable[[str], bool]]] = {
    "server.template": lambda text: "/" in text,
    "server.requirements": bool,
    "server.code": bool,
    "model.source": lambda text: not is_remote(text),
    "model.store": lambda text: "://" not in text,
}


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A valid spec, with its place on disk and where each written setting came from.

    `path` is absolute. `origins` maps dotted keys to ``mlimg.yaml:4:12``, ``MLIMG_SET`` or ``--set``; what no one wrote
    is absent. Paths that the spec names may not leave `project` and the `allowed` folders. Of several models each has
    a spec of its own in `models`; `model` is then what they make together. `at` is what `model` is called in the file.
    """

    spec: Spec
    path: Path
    project: Path
    allowed: tuple[Path, ...]
    origins: Mapping[str, str]
    models: "tuple[LoadedSpec, ...]" = ()
    at: str = "model"

    def shown(self, key: str) -> str:
        """A key as the file has it."""
        return shown_key(key, self.at)

    def file(self, key: str, text: str) -> Path:
        """Where a path written at `key` leads, links resolved; nothing need be there.

        Raises InvalidSpecError with the flag that would allow it when it leads out of the project.
        """
        try:
            return Folders(self.path.parent, self.project, self.allowed).file(text)
        except OutsideError as outside:
            place = Place.named(self.origins.get(key, self.path.name))
            raise InvalidSpecError(self.path.name, [_outside(place, self.shown(key), outside)]) from outside


def load_spec(path: Path, overrides: Overrides = NO_OVERRIDES) -> LoadedSpec:
    """Read the spec at `path`, a file or a folder with `mlimg.yaml`, lay the overrides over it and type it.

    Raises InvalidSpecError (a SpecError) with all problems, SpecError for what is no file, LimitError for a spec
    that is nested too deep or too long, LocalIOError for a file that cannot be read.
    """
    # Unlike Path.is_dir, this says no where it may not look; opening says why.
    file = path / SPEC_NAME if os.path.isdir(path) else path  # noqa: PTH112
    name = str(file)
    document = lay_over(parse(read_spec_file(file, name), name), overrides)
    folders = Folders.around(file, overrides.allow_paths)
    if isinstance(document.root, dict) and MODELS in document.root:
        return _several(document, file, folders)
    spec, problems = _judged(document, folders)
    if spec is None or problems:
        raise InvalidSpecError(name, problems)
    return LoadedSpec(spec, folders.spec / file.name, folders.project, folders.allowed, _origins(document))


def _several(document: Document, file: Path, folders: Folders) -> LoadedSpec:
    """The spec of several models. Raises InvalidSpecError."""
    read = [(view, *_judged(view.document, folders)) for view in (whole(document), *views(document))]
    problems = [view.told(problem) for view, _, wrong in read for problem in wrong]
    right = {number: spec for number, (_, spec, _) in enumerate(read[1:]) if spec is not None}
    problems += problems_of(document, right)
    loaded = [
        LoadedSpec(
            spec, folders.spec / file.name, folders.project, folders.allowed, _origins(view.document), at=view.at
        )
        for view, spec, _ in read
        if spec is not None
    ]
    if problems or len(loaded) < len(read):
        raise InvalidSpecError(str(file), problems)
    return replace(loaded[0], models=tuple(loaded[1:]))


def _judged(document: Document, folders: Folders) -> tuple[Spec | None, list[Problem]]:
    spec, problems = _typed(document)
    return spec, [*problems, *_paths_outside(document, folders, {problem.key for problem in problems})]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `mlimg.yaml`, for editors: what `load_spec` takes is valid by it."""
    schema = _tidied(Spec.model_json_schema())
    one = schema["$defs"]["ModelSpec"]
    # What pydantic does not know: several models are read as several specs.
    schema["$defs"]["NamedModelSpec"] = {**one, "required": ["name", *one["required"]]}
    schema["properties"]["models"] = {
        "type": "array",
        "items": {"$ref": "#/$defs/NamedModelSpec"},
        "minItems": 1,
        "description": "Several models in one server, instead of `model`.",
    }
    schema["properties"]["version"] = {
        **one["properties"]["version"],
        "description": "With `models`: the version of all together, the image's tag.",
    }
    schema["required"].remove("model")
    schema["oneOf"] = [
        {"required": ["model"], "not": {"required": ["version"]}},
        {"required": ["models", "version"], "not": {"required": ["model"]}},
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": SPEC_NAME}


def _typed(document: Document) -> tuple[Spec | None, list[Problem]]:
    try:
        return Spec.model_validate(document.root), list(document.problems)
    except ValidationError as error:
        return None, [*document.problems, *explain(error, document)]


def _paths_outside(document: Document, folders: Folders, told: Collection[str]) -> Iterator[Problem]:
    """Judge the paths even when other keys are wrong: a person mends all in one go."""
    for path, text in _leaves(document.root):
        key = dotted(path)
        leads = _PATH_KEYS.get(key)
        if leads is None or key in told or not isinstance(text, str) or not leads(text):
            continue
        try:
            folders.file(text)
        except OutsideError as outside:
            yield _outside(document.values[path], key, outside)


def _outside(place: Place, key: str, outside: OutsideError) -> Problem:
    return Problem(place, key, str(outside), Code.PATH, outside.hint)


def _origins(document: Document) -> dict[str, str]:
    return {dotted(path): str(document.values[path]) for path, _ in _leaves(document.root)}


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is no section: a list is one value, a variable in `env` one each."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, (*path, key))


def _tidied(value: Any) -> Any:
    """Without the titles that repeat a key's name, and without null, which a spec never has."""
    if isinstance(value, list):
        return [_tidied(item) for item in value if item != {"type": "null"}]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _tidied(inner)
        for key, inner in value.items()
        if not (key == "title" and isinstance(inner, str)) and not (key == "default" and inner is None)
    }
    alternatives = kept.get("anyOf")
    if isinstance(alternatives, list) and len(alternatives) == 1:
        del kept["anyOf"]
        kept = {**alternatives[0], **kept}
    return kept
