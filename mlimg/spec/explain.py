"""Typed validation, told in the words of the spec: place, key, rule, and the key that was probably meant."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from mlimg.spec.document import Document, KeyPath, Refused, Unclear, dotted
from mlimg.spec.grammar import shown
from mlimg.spec.problems import Code, Place, Problem
from mlimg.spec.schema import Section, Spec, keys

_EXPECTED: Final = {
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list such as [a, b]",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "enum": "`in-image` or `load`",
}


def explain(error: ValidationError, document: Document) -> Iterator[Problem]:
    """One problem for each thing pydantic found, but for values whose problem is told already."""
    for found in error.errors(include_url=False):
        problem = _problem(found, document)
        if problem:
            yield problem


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)


def _problem(found: Mapping[str, Any], document: Document) -> Problem | None:
    kind, value, path = found["type"], found["input"], _way(found["loc"], document)
    place = document.values.get(path) or Place.in_file(document.name, 1, 1)
    if kind == "extra_forbidden":
        return Problem(document.keys.get(path, place), dotted(path), _unknown(path), Code.UNKNOWN_KEY)
    if kind == "missing":
        place = document.keys.get(path) or place
        path = (*path, found["loc"][-1])
        return Problem(place, dotted(path), f"is missing. {_description(path)}", Code.MISSING)
    if isinstance(value, Refused):
        return None
    message, code = _invalid(kind, value, found, document.written.get(path))
    if not path:
        # Not a spec but some other file, perhaps one that a link leads to: nothing of it is shown.
        message = "expected keys and values, such as `image: …`"
    return Problem(place, dotted(path), message, code)


def _invalid(kind: str, value: object, found: Mapping[str, Any], written: str | None) -> tuple[str, Code]:
    if isinstance(value, Unclear):
        return _unclear(value, kind), Code.TYPE
    if kind == "value_error":
        return str(found["ctx"]["error"]), Code.VALUE
    return _mistyped(kind, value, written), Code.TYPE


def _way(loc: tuple[str | int, ...], document: Document) -> KeyPath:
    """The part of pydantic's way that exists in the document: it names alternatives of a type, too."""
    path: KeyPath = ()
    for part in loc:
        if (*path, part) in document.values:
            path = (*path, part)
    return path


def _unclear(value: Unclear, kind: str) -> str:
    if not value.text:
        return "is empty: write a value or remove the key"
    if value.text in {"~", "null", "Null", "NULL"}:
        return f"YAML reads {shown(value.text)} as no value: remove the key, or quote it"
    if kind == "bool_type":
        return f"expected true or false, not {shown(value.text)}"
    return f'YAML does not read {shown(value.text)} as text: quote it, "{value.text}"'


def _mistyped(kind: str, value: object, written: str | None) -> str:
    expected = _EXPECTED.get(kind, "another value")
    if written is not None and kind == "string_type":
        return f'YAML does not read {shown(written)} as text: quote it, "{written}"'
    if isinstance(value, str):
        return f"expected {expected}, not {shown(value)}"
    return f"expected {expected}, not {_kind_of(value)}"


def _kind_of(value: object) -> str:
    if isinstance(value, Mapping):
        return "keys and values"
    return "a list" if isinstance(value, tuple) else shown(str(value))


def _unknown(path: KeyPath) -> str:
    section = _section(path[:-1])
    word = str(path[-1])
    near = nearest(word, list(section.model_fields))
    if near is None:  # right word, wrong section
        near = next((key.name for key in keys() if key.name.rpartition(".")[2] == word), None)
    return "unknown key" + (f"; did you mean `{near}`?" if near else f"; known are {', '.join(section.model_fields)}")


def _description(path: KeyPath) -> str:
    return _section(path[:-1]).model_fields[str(path[-1])].description or ""


def _section(path: KeyPath) -> type[Section]:
    section: type[Section] = Spec
    for part in path:
        inner = section.model_fields[str(part)].annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            section = inner
    return section
