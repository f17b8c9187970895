"""Rows as JSON, as KServe V1, TensorFlow Serving and Vertex AI have them: `instances` in, `predictions` out.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np

from mlimg.runtime.server.body import parse_object, written
from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.exchange import Query, Reply
from mlimg.runtime.server.metadata import TABLE, Arrays, ModelMetadata
from mlimg.runtime.server.tensors import MAX_RANK, TensorSpec, as_texts, decode, shown

MAX_COLUMNS: Final = 256  # of a model that does not say how many it has
_GUESSES: Final = {frozenset({str}): "BYTES", frozenset({bool}): "BOOL", frozenset({int}): "INT64"}


@dataclass(frozen=True, slots=True)
class InstancesCodec:
    """`{"instances": [...]}`, or the same under `inputs`, where an object has a list for each column."""

    def read(self, model: ModelMetadata, body: bytes) -> Query:
        """Read a request; all else that it says is ignored. Raises InputError."""
        request = parse_object(body)
        given = [key for key in ("instances", "inputs") if key in request]
        if len(given) != 1:
            raise InputError("the body must have `instances`, or `inputs` instead")
        value = request[given[0]]
        columns = given == ["inputs"] and isinstance(value, dict)
        return Query(read_columns(model, value) if columns else read_rows(model, value))

    def write(self, _model: ModelMetadata, _query: Query, tensors: Arrays) -> Reply:
        """Write the predictions. Raises InputError, PredictionError."""
        return Reply(written({"predictions": predictions(tensors)}))


def read_rows(model: ModelMetadata, rows: object) -> Arrays:
    """The tensors of rows: objects by column name, or what stands in the order of the model's inputs.

    A model of one input takes a row as it is, one of several takes a list with a value for each. Raises InputError.
    """
    if not isinstance(rows, list) or not rows:
        raise InputError("the instances must be a list of at least one")
    if isinstance(rows[0], dict):
        names = rows[0].keys()
        if not all(isinstance(row, dict) and row.keys() == names for row in rows):
            raise InputError("the instances do not all have the same columns")
        return read_columns(model, {name: [row[name] for row in rows] for name in names})
    if len(model.inputs) <= 1:
        return read_columns(model, {model.inputs[0].name if model.inputs else TABLE: rows})
    count = len(model.inputs)
    if not all(isinstance(row, list) and len(row) == count for row in rows):
        raise InputError(f"each instance must be a list of {count} values, or an object with a value for each input")
    return read_columns(model, {spec.name: [row[place] for row in rows] for place, spec in enumerate(model.inputs)})


def read_columns(model: ModelMetadata, columns: Mapping[str, object]) -> Arrays:
    """The tensors of named columns, of the model's datatypes, or of such as their values have. Raises InputError."""
    if not 0 < len(columns) <= max(MAX_COLUMNS, len(model.inputs)):
        raise InputError(f"there are {len(columns)} columns")
    known = {spec.name: spec for spec in model.inputs}
    return {name: _tensor(name, values, known.get(name)) for name, values in columns.items()}


def predictions(tensors: Arrays) -> list[Any]:
    """A prediction for each row: that of the only output, or an object with one for each. Raises as `plain` does."""
    lists = plain(tensors)
    if len(lists) == 1:
        return next(iter(lists.values()))
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def plain(tensors: Arrays) -> dict[str, list[Any]]:
    """Outputs as nested lists; NaN and infinities are None.

    Raises InputError when several outputs are not of as many rows, PredictionError for bytes that are no text.
    """
    if len({len(array) for array in tensors.values()}) > 1:
        raise InputError("the outputs are not of as many rows: ask for them by the protocol V2")
    return {name: _values(name, array) for name, array in tensors.items()}


def _values(name: str, array: np.ndarray[Any, Any]) -> list[Any]:
    if array.dtype.kind == "O":
        try:
            array = as_texts(array)
        except InputError as error:
            raise PredictionError(f"output `{name}` holds bytes that are not UTF-8, which JSON cannot carry") from error
    elif array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            array = array.astype(np.object_)
            array[~finite] = None
    values: list[Any] = array.tolist()
    return values


def _tensor(name: str, values: object, spec: TensorSpec | None) -> np.ndarray[Any, Any]:
    if not isinstance(values, list):
        raise InputError(f"`{shown(name)}` must be a list with a value for each row")
    shape = _shape(values)
    datatype = spec.datatype if spec and spec.datatype else _guess(values, len(shape))
    return decode(name, datatype, shape, values)


def _shape(values: object) -> list[int]:
    """The shape of nested lists by their first elements; `decode` sees whether the others keep to it."""
    shape: list[int] = []
    while isinstance(values, list) and len(shape) <= MAX_RANK:
        shape.append(len(values))
        values = values[0] if values else None
    return shape


def _guess(values: Sequence[Any], rank: int) -> str:
    """The datatype that holds JSON values."""
    for _ in range(rank - 1):
        values = list(chain.from_iterable(value for value in values if isinstance(value, list)))
    return _GUESSES.get(frozenset(map(type, values)), "FP64")
