"""A spec of several models is read as specs of one: each entry of `models:` stands where `model:` does.

So each is typed, explained and confined as a single model is; only the names of its keys are its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mlimg.runtime.manifest import RESERVED_NAMES
from mlimg.spec.document import Document, KeyPath
from mlimg.spec.problems import Code, Problem
from mlimg.spec.schema import Spec

MODELS: Final = "models"
_HERE: Final = "."


@dataclass(frozen=True, slots=True)
class View:
    """A spec of one model: what `model:` is called in the file, and the document in which it is called so."""

    at: str
    document: Document

    def told(self, problem: Problem) -> Problem:
        """A problem by the key that the file has."""
        return replace(problem, key=shown_key(problem.key, self.at))


def shown_key(key: str, at: str) -> str:
    """A key of the schema as the file has it: ``models[1].source`` for ``model.source``."""
    head, dot, rest = key.partition(".")
    if head != "model":
        return key
    of_all = {"version": "version", "store": f"{MODELS}[0].store"} if at == MODELS else {}
    return of_all.get(rest, f"{at}{dot}{rest}")


def views(document: Document) -> tuple[View, ...]:
    """One spec for each model of a document that has `models:`; `problems_of` tells what is wrong with the list."""
    items = document.root[MODELS] if isinstance(document.root[MODELS], tuple) else ()
    return tuple(_view(document, number) for number in range(len(items)))


def whole(document: Document) -> View:
    """The spec of what the models make together: its `model` has the version of all, and lies where they do."""
    root: Mapping[str, Any] = document.root
    items = root[MODELS] if isinstance(root[MODELS], tuple) else ()
    first = items[0] if items and isinstance(items[0], dict) else {}
    kept = {"version": root.get("version"), "store": first.get("store")}
    model = {"source": _HERE, **{key: value for key, value in kept.items() if value is not None}}
    moved = {("version",): ("model", "version"), (MODELS, 0, "store"): ("model", "store"), (MODELS,): ("model",)}
    found = _with_model(document, model, moved)
    values = {("model", "source"): document.values[(MODELS,)], **found.values}
    return View(MODELS, replace(found, values=values))


def problems_of(document: Document, specs: Mapping[int, Spec]) -> Iterator[Problem]:
    """What is wrong with the list itself; `specs` are those of its models that are right alone."""
    place = document.keys[(MODELS,)]
    if "model" in document.root:
        # A setting that was laid over the file has no key `model` there.
        beside = document.keys.get(("model",), document.values[("model",)])
        yield Problem(beside, "model", "is there beside `models`: write one of the two", Code.VALUE)
    if not isinstance(document.root[MODELS], tuple) or not document.root[MODELS]:
        yield Problem(place, MODELS, "expected a list of models, each with name, version and source", Code.TYPE)
    names: set[str] = set()
    for number, spec in specs.items():
        at, name = f"{MODELS}[{number}]", spec.model.name
        if name is None:
            message = "is missing. Each of several models has a name of its own."
            yield Problem(document.values[MODELS, number], f"{at}.name", message, Code.MISSING)
            continue
        where = document.values[MODELS, number, "name"]
        if name in names:
            yield Problem(where, f"{at}.name", f"another model is named `{name}`, too", Code.VALUE)
        if name in RESERVED_NAMES:
            yield Problem(where, f"{at}.name", f"`{name}` is the name of a file that mlimg writes", Code.VALUE)
        names.add(name)
    stores = {spec.model.store for spec in specs.values()}
    if len(stores) > 1:
        message = "the models of one server are in one store: write the same `store` for each"
        yield Problem(place, MODELS, message, Code.VALUE)


def _view(document: Document, number: int) -> View:
    item = document.root[MODELS][number]
    return View(f"{MODELS}[{number}]", _with_model(document, item, {(MODELS, number): ("model",)}))


def _with_model(document: Document, model: object, moved: Mapping[KeyPath, KeyPath]) -> Document:
    """The document with `model` instead of `models` and `version`; `moved` says where its parts were."""

    def place(table: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
        placed = {path: value for path, value in table.items() if path[:1] not in {(MODELS,), ("version",), ("model",)}}
        for old, new in moved.items():
            inside = {path: value for path, value in table.items() if path[: len(old)] == old}
            placed |= {(*new, *path[len(old) :]): value for path, value in inside.items()}
        return placed

    kept = {key: value for key, value in document.root.items() if key not in {MODELS, "version", "model"}}
    return replace(
        document,
        root={**kept, "model": model},
        values=place(document.values),
        keys=place(document.keys),
        written=place(document.written),
    )
