"""JSON Schemas of what the protocols carry, and example requests, made from a model's signature.

https://json-schema.org/draft/2020-12, as OpenAPI 3.1 has it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from mlimg.runtime.server.metadata import TABLE, ModelMetadata
from mlimg.runtime.server.protocols.instances import plain
from mlimg.runtime.server.tensors import DTYPES, TensorSpec, as_tensor, encode

Schema = dict[str, Any]
MAX_EXAMPLE: Final = 10_000  # elements: an image of a few megapixels would make a document that nobody can read
_ELEMENTS: Final[Mapping[str, Schema]] = {
    "b": {"type": "boolean"},
    "i": {"type": "integer"},
    "u": {"type": "integer", "minimum": 0},
    "f": {"type": ["number", "null"]},
    "O": {"type": "string"},
}


def v2_request(model: ModelMetadata) -> Schema:
    """A request of the Open Inference Protocol V2 with its tensors as JSON."""
    table = _table(model)
    tensors = [_tensor(spec) for spec in (*model.inputs, *table)]
    least = 1 if table or not model.inputs else len(_required(model))
    inputs: Schema = {"type": "array", "minItems": least, "items": {"anyOf": tensors} if tensors else _tensor()}
    if model.inputs:
        inputs["maxItems"] = len(model.inputs)
    names = [spec.name for spec in model.outputs]
    wanted = {"type": "object", "properties": {"name": _one_of(names)}, "required": ["name"]}
    properties = {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": inputs,
        "outputs": {"type": "array", "items": wanted, "description": "The outputs wanted; all of them without this."},
    }
    return {"type": "object", "properties": properties, "required": ["inputs"]}


def v2_answer(model: ModelMetadata) -> Schema:
    """An answer of V2."""
    tensors = [_tensor(spec, given=False) for spec in model.outputs]
    properties = {
        "model_name": {"const": model.name},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": {"anyOf": tensors} if tensors else _tensor()},
    }
    return {"type": "object", "properties": properties, "required": ["model_name", "outputs"]}


def v2_example(model: ModelMetadata) -> Any:
    """A request that the model's signature allows; None where it does not say enough, or asks for too much."""
    arrays = _samples(model)
    if arrays is None:
        return None
    return {"inputs": [encode(spec.name, arrays[spec.name], spec.datatype or "FP64") for spec in model.inputs]}


def v1_request(model: ModelMetadata) -> Schema:
    """A request of KServe V1: an instance is a row of the only input, or has a value for each of several."""
    rows: list[Schema] = []
    if model.inputs:
        by_name = {spec.name: _row(spec) for spec in model.inputs}
        rows.append({"type": "object", "properties": by_name, "required": _required(model)})
        rows.append(_row(model.inputs[0]) if len(model.inputs) == 1 else {"type": "array", "minItems": len(by_name)})
    instances = {"type": "array", "minItems": 1, "items": {"anyOf": rows} if rows else {}}
    return {"type": "object", "properties": {"instances": instances}, "required": ["instances"]}


def v1_answer(_model: ModelMetadata) -> Schema:
    """An answer of V1: a prediction for each instance."""
    return {"type": "object", "properties": {"predictions": {"type": "array"}}, "required": ["predictions"]}


def v1_example(model: ModelMetadata) -> Any:
    """As `v2_example`; None, too, for inputs that have no rows in common."""
    arrays = _samples(model)
    if arrays is None or len({array.shape[:1] for array in arrays.values()} | {()}) != 2:
        return None
    lists = plain(arrays)
    if len(lists) == 1:
        return {"instances": next(iter(lists.values()))}
    return {"instances": [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]}


def _samples(model: ModelMetadata) -> dict[str, np.ndarray[Any, Any]] | None:
    sizes = [np.prod([abs(n) for n in spec.shape], dtype=float) for spec in model.inputs]
    if not sizes or sum(sizes) > MAX_EXAMPLE:
        return None
    return {spec.name: as_tensor(spec.sample()) for spec in model.inputs}


def _tensor(spec: TensorSpec | None = None, *, given: bool = True) -> Schema:
    """A tensor as the model declares it, else any; a client may give one that is as good."""
    shape: Schema = {"type": "array", "items": {"type": "integer", "minimum": 1}}
    datatypes, element, name = list(DTYPES), {}, {"type": "string"}
    if spec is not None:
        name, shape = {"const": spec.name}, _shape(spec.shape, given=given)
        if spec.datatype:
            datatypes = _accepted(spec.datatype) if given else [spec.datatype]
            element = _ELEMENTS[DTYPES[spec.datatype].kind]
    data = {"type": "array", "items": {"anyOf": [element, {"type": "array"}]} if given and element else element}
    properties = {"name": name, "datatype": _one_of(datatypes), "shape": shape, "data": data}
    return {"type": "object", "properties": properties, "required": [*properties]}


def _shape(declared: Sequence[int], *, given: bool) -> Schema:
    """A column `[n, 1]` may be given for `[n]`, and the other way round."""
    least = most = len(declared)
    if given and len(declared) == 2 and declared[1] in (-1, 1):
        least = 1
    if given and len(declared) == 1:
        most = 2
    sizes = [{"type": "integer", "minimum": 0 if not given else 1} if n == -1 else {"const": n} for n in declared]
    schema: Schema = {"type": "array", "items": {"const": 1}, "minItems": least, "maxItems": most}
    return {**schema, "prefixItems": sizes} if sizes else schema


def _row(spec: TensorSpec) -> Schema:
    """One row of an input as nested lists."""
    schema: Schema = dict(_ELEMENTS[DTYPES[spec.datatype].kind]) if spec.datatype else {}
    for size in reversed(spec.shape[1:]):
        schema = {"type": "array", "items": schema}
        if size != -1:
            schema |= {"minItems": size, "maxItems": size}
    return {"anyOf": [schema, {"type": "array", "maxItems": 1}]} if len(spec.shape) == 1 else schema


def _table(model: ModelMetadata) -> Sequence[TensorSpec]:
    """The one 2-D tensor in place of a tensor for each column, where the model takes it."""
    columns = all(spec.shape in ((-1,), (-1, 1)) for spec in model.inputs)
    if len(model.inputs) < 2 or not columns or any(spec.name == TABLE for spec in model.inputs):
        return ()
    return (TensorSpec(TABLE, None, (-1, len(model.inputs))),)


def _accepted(declared: str) -> list[str]:
    """The datatypes that are cast to a declared one when no value changes its meaning; it comes first."""
    wanted = DTYPES[declared]
    others = [name for name, dtype in DTYPES.items() if name != declared and "O" not in (dtype.kind, wanted.kind)]
    return [declared, *(name for name in others if np.can_cast(DTYPES[name], wanted, "same_kind"))]


def _required(model: ModelMetadata) -> list[str]:
    return [spec.name for spec in model.inputs if spec.parameters.get("required", True)]


def _one_of(values: Sequence[str]) -> Schema:
    return {"type": "string", "enum": list(values)} if values else {"type": "string"}
