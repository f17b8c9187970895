"""Settings laid over a spec: ``MLIMG_SET`` first, then ``--set``; of two for one key the later wins.

A setting is ``key=value``, the key dotted (``server.options.method``) and the value text, which the schema types:
text stays as it is written, so nothing needs quotes; true and false; a list is ``[a, b]`` or its one item.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from mlimg.spec.document import Document, KeyPath, parse_list
from mlimg.spec.explain import nearest
from mlimg.spec.grammar import shown
from mlimg.spec.problems import Code, Place, Problem
from mlimg.spec.requirement import FILE_SUFFIXES
from mlimg.spec.schema import Spec, keys
from mlimg.spec.several import MODELS

ENVIRONMENT: Final = Place.named("MLIMG_SET", 1)
ARGUMENT: Final = Place.named("--set", 2)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line collected; values are text. `environment` is the content of ``MLIMG_SET``."""

    environment: str = ""
    sets: tuple[str, ...] = ()
    allow_paths: tuple[Path, ...] = ()


NO_OVERRIDES: Final = Overrides()


def lay_over(document: Document, overrides: Overrides) -> Document:
    """The document with every setting in its place; what cannot be laid becomes one of its problems.

    Raises LimitError.
    """
    for place, setting in _settings(overrides):
        try:
            document = _lay(document, place, setting)
        except _RefusedError as refused:
            problem = Problem(place, refused.key, str(refused), refused.code)
            document = replace(document, problems=(*document.problems, problem))
    return document


class _RefusedError(Exception):
    def __init__(self, key: str, message: str, code: Code) -> None:
        super().__init__(message)
        self.key = key
        self.code = code


def _settings(overrides: Overrides) -> Iterator[tuple[Place, str]]:
    # Not splitlines(): it would end a line at characters that a value must not have.
    for line in overrides.environment.split("\n"):
        if line.strip():
            yield ENVIRONMENT, line
    for setting in overrides.sets:
        yield ARGUMENT, setting


def _lay(document: Document, place: Place, setting: str) -> Document:
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals:
        raise _RefusedError("", f"{shown(setting)} is not key=value", Code.SYNTAX)
    path, kinds = _known(key)
    value = _typed(key, text, kinds)
    root = document.root
    if not isinstance(root, dict):
        return document  # the spec's own problem is told
    return replace(
        document,
        root=_with(root, path, value),
        values={**_places(path, value, place), **_outside(path, document.values)},
        keys={**document.keys, path: place},
        # What the file had there is no longer what was written.
        written=_outside(path, document.written),
    )


def _known(key: str) -> tuple[KeyPath, set[Any]]:
    """The way to a key and the kinds of value it takes."""
    table = {known.name: known.field.annotation for known in keys()}
    if key in table:
        kinds = _kinds(table[key])
        if dict in kinds:
            raise _RefusedError(key, f"is set one at a time: {key}.NAME=value", Code.TYPE)
        return tuple(key.split(".")), kinds
    section, _, name = key.rpartition(".")
    if name and dict in _kinds(table.get(section)):
        return (*section.split("."), name), {str}
    if key in Spec.model_fields or not key:
        known = ", ".join(name for name in table if name.startswith(f"{key}."))
        raise _RefusedError(key, f"is set by its keys: {known}" if key else "the key is missing", Code.TYPE)
    if key.partition("[")[0].partition(".")[0] in {MODELS, "version"}:
        raise _RefusedError(key, "is written in the file alone", Code.TYPE)
    near = nearest(key, list(table)) or next((name for name in table if name.endswith(f".{key}")), None)
    raise _RefusedError(key, "unknown key" + (f"; did you mean `{near}`?" if near else ""), Code.UNKNOWN_KEY)


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of: ``{tuple, str}`` for ``server.requirements``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return {kind for inner in get_args(annotation) for kind in _kinds(inner)}
    return {origin or annotation}


def _typed(key: str, text: str, kinds: set[Any]) -> Any:
    if bool in kinds:
        return {"true": True, "false": False}.get(text, text)
    if tuple not in kinds or (str in kinds and text.endswith(FILE_SUFFIXES)):
        return text
    if not text.startswith("["):
        return (text,) if text else ()
    try:
        return parse_list(text)
    except ValueError as error:
        raise _RefusedError(key, str(error), Code.VALUE) from error


def _with(values: Mapping[str, Any], path: KeyPath, value: Any) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {**values, str(head): value}
    inner = values.get(str(head), {})
    if not isinstance(inner, dict):
        return dict(values)  # not a section: the spec's own problem is told
    return {**values, str(head): _with(inner, tuple(rest), value)}


def _places(path: KeyPath, value: Any, place: Place) -> dict[KeyPath, Place]:
    """Where a laid value, its items and the sections above it are, as far as nothing else says so."""
    items = range(len(value)) if isinstance(value, tuple) else ()
    above = {path[:length]: place for length in range(1, len(path))}
    return {**above, path: place, **{(*path, number): place for number in items}}


def _outside(path: KeyPath, table: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
    return {way: found for way, found in table.items() if way[: len(path)] != path}
