"""From a request's bytes to its answer's: read, predict, write, for one request or for several as one batch.

All of it happens where the model is, in a thread or a process of its own, so that the event loop stays free.
"""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from mlimg.runtime.server import tracing
from mlimg.runtime.server.errors import PredictionError
from mlimg.runtime.server.metadata import Arrays, ModelMetadata, select
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.tracing import RequestContext

log = logging.getLogger(__name__)
JSON: Final = "application/json"
_NONE: Final[Mapping[str, str]] = {}


class Query(NamedTuple):
    """What a request asks: tensors, the outputs it selects (none means all), and what its codec wants back."""

    arrays: Arrays
    wanted: Sequence[str] = ()
    note: Any = None


class Reply(NamedTuple):
    """An answer: its body, and its headers, whose names are of lower case."""

    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = _NONE


class Codec(Protocol):
    """How a protocol's requests are read and its answers written. A value: it may travel to another process."""

    def read(self, model: ModelMetadata, body: bytes) -> Query:
        """Read a request. Raises InputError."""
        ...

    def write(self, model: ModelMetadata, query: Query, tensors: Arrays) -> Reply:
        """Write the answer to `query`. Raises InputError, PredictionError."""
        ...


class Call(NamedTuple):
    """A request on its way to a model."""

    codec: Codec
    body: bytes
    context: RequestContext | None = None


Outcome = Reply | Exception


def answer(model: LoadedModel, calls: Sequence[Call]) -> list[Outcome]:
    """Answer calls, in their order; those that fit together are predicted as one. What one breaks is its own."""
    if len(calls) == 1:
        return [_answer_alone(model, calls[0])]
    tracing.enter(None)
    queries = [_read(model.metadata, call) for call in calls]
    predicted: dict[int, Arrays | Exception] = {}
    for numbers in _batches(queries):
        predicted.update(zip(numbers, _predict(model, [queries[number] for number in numbers]), strict=True))
    return [
        _write(model.metadata, call, query, predicted.get(number))
        for number, (call, query) in enumerate(zip(calls, queries, strict=True))
    ]


def _answer_alone(model: LoadedModel, call: Call) -> Outcome:
    tracing.enter(call.context)
    query = _read(model.metadata, call)
    return _write(model.metadata, call, query, None if isinstance(query, Exception) else _predict_alone(model, query))


def _read(model: ModelMetadata, call: Call) -> Query | Exception:
    try:
        query = call.codec.read(model, call.body)
        model.check_wanted(query.wanted)
        return Query(model.check_inputs(query.arrays), query.wanted, query.note)
    except Exception as error:
        return error


def _batches(queries: Sequence[Query | Exception]) -> Iterable[list[int]]:
    """The places of queries that can be one prediction: of the same tensors, which differ in their rows alone."""
    keys = {number: _likeness(query) for number, query in enumerate(queries) if isinstance(query, Query)}
    places = sorted(keys, key=lambda number: repr(keys[number]))
    return [list(numbers) for _, numbers in groupby(places, key=keys.__getitem__)]


def _likeness(query: Query) -> Hashable:
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(query.arrays.items()))


def _predict(model: LoadedModel, queries: Sequence[Any]) -> Sequence[Arrays | Exception]:
    counts = [_rows(query.arrays) for query in queries]
    if len(queries) > 1 and None not in counts:
        try:
            joined = {name: np.concatenate([query.arrays[name] for query in queries]) for name in queries[0].arrays}
            return _split(model.run(joined), counts)
        except Exception as error:  # no memory for all of them among others
            # One of them, or being together, is to blame: each is heard alone.
            log.debug("a batch of %d is predicted one by one: %s", len(queries), error)
    return [_predict_alone(model, query) for query in queries]


def _predict_alone(model: LoadedModel, query: Query) -> Arrays | Exception:
    try:
        return model.run(query.arrays)
    except Exception as error:
        return error


def _rows(arrays: Arrays) -> int | None:
    """How many rows a request has; None where its tensors do not agree on it."""
    counts = {array.shape[0] if array.ndim else None for array in arrays.values()}
    return counts.pop() if len(counts) == 1 else None


def _split(tensors: Arrays, counts: Sequence[Any]) -> list[Arrays | Exception]:
    if any(array.ndim == 0 or len(array) != sum(counts) for array in tensors.values()):
        raise PredictionError("an output has not as many rows as the inputs")
    ends = np.cumsum(counts)
    return [
        {name: array[end - count : end] for name, array in tensors.items()}
        for count, end in zip(counts, ends, strict=True)
    ]


def _write(model: ModelMetadata, call: Call, query: Query | Exception, tensors: Arrays | Exception | None) -> Outcome:
    if isinstance(query, Exception):
        return query
    if tensors is None or isinstance(tensors, Exception):
        return tensors or PredictionError("nothing was predicted")
    try:
        return call.codec.write(model, query, select(tensors, query.wanted))
    except Exception as error:
        return error
