"""Inference requests of the Open Inference Protocol V2 over gRPC, from their bytes and to them.

Nothing of gRPC itself is needed here: it runs where the model is, maybe in a process of its own.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.exchange import Query, Reply
from mlimg.runtime.server.grpc_v2 import wire
from mlimg.runtime.server.grpc_v2.messages import MESSAGES, parsed
from mlimg.runtime.server.metadata import Arrays, ModelMetadata
from mlimg.runtime.server.protocols.v2_codec import MAX_TENSORS, REFUSED
from mlimg.runtime.server.raw_tensors import from_raw, to_raw
from mlimg.runtime.server.tensors import DTYPES, check_datatype, check_shape, shown, wire_datatypes

_NAME, _VERSION, _RAW_INPUTS, _RAW_OUTPUTS = 1, 2, 7, 6  # numbers of fields
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_WIDE: Final = {"int_contents": np.int64, "uint_contents": np.int64}


def model_of(body: bytes) -> tuple[str, str | None]:
    """Name and version, None for any, of the model that a request is for. Raises InputError."""
    name, version = wire.texts(body, _NAME, _VERSION)
    return name, version or None


@dataclass(frozen=True, slots=True)
class GrpcCodec:
    """Reads `ModelInferRequest`, writes `ModelInferResponse`, whose tensors are always raw."""

    def read(self, _model: ModelMetadata, body: bytes) -> Query:
        """Read a request; its note is its id. Raises InputError."""
        raw: list[memoryview] = []
        rest: list[memoryview] = []
        view = memoryview(body)
        for field in wire.fields(body):
            if field.number == _RAW_INPUTS:
                raw.append(view[field.value : field.end])
            else:
                rest.append(view[field.begin : field.end])
        request = parsed("ModelInferRequest", b"".join(rest))
        _check_parameters(request, "the request")
        _check_tensors(request.inputs, "inputs")
        _check_tensors(request.outputs, "outputs")
        if not request.inputs:
            raise InputError("`inputs` is empty")
        wanted = [tensor.name for tensor in request.outputs]
        return Query(_raw_arrays(request.inputs, raw) if raw else _typed_arrays(request.inputs), wanted, request.id)

    def write(self, model: ModelMetadata, query: Query, tensors: Arrays) -> Reply:
        """Write the answer."""
        response = MESSAGES["ModelInferResponse"](
            model_name=model.name, model_version=model.version or "", id=query.note
        )
        datatypes = wire_datatypes(tensors, model.outputs)
        blobs: list[bytes | memoryview] = []
        for name, array in tensors.items():
            response.outputs.add(name=name, datatype=datatypes[name], shape=array.shape)
            blob = to_raw(array, datatypes[name])
            blobs += (wire.head(_RAW_OUTPUTS, len(blob)), blob)
        return Reply(b"".join((response.SerializeToString(), *blobs)), "application/grpc")


def _raw_arrays(inputs: Collection[Any], raw: list[memoryview]) -> Arrays:
    if len(raw) != len(inputs):
        raise InputError(f"`raw_input_contents` has {len(raw)} tensors, `inputs` has {len(inputs)}")
    for tensor in inputs:
        if tensor.HasField("contents"):
            raise InputError(f"tensor `{shown(tensor.name)}` has `contents` beside `raw_input_contents`")
    return {
        tensor.name: from_raw(tensor.name, tensor.datatype, list(tensor.shape), data)
        for tensor, data in zip(inputs, raw, strict=True)
    }


def _typed_arrays(inputs: Iterable[Any]) -> Arrays:
    return {tensor.name: _typed(tensor) for tensor in inputs}


def _typed(tensor: Any) -> np.ndarray[Any, Any]:
    """The array of a tensor whose elements are in the list for its datatype."""
    name = shown(tensor.name)
    datatype = check_datatype(tensor.name, tensor.datatype)
    sizes = check_shape(tensor.name, list(tensor.shape))
    kind = _CONTENTS.get(datatype)
    if kind is None:
        raise InputError(f"tensor `{name}`: {datatype} comes in `raw_input_contents` alone")
    for field, _ in tensor.contents.ListFields():
        if field.name != kind:
            raise InputError(f"tensor `{name}`: {datatype} comes in `{kind}`, not in `{field.name}`")
    values = getattr(tensor.contents, kind)
    count = math.prod(sizes)
    if len(values) != count:
        raise InputError(f"tensor `{name}`: shape {list(sizes)} holds {count} values, `{kind}` has {len(values)}")
    dtype = DTYPES[datatype]
    found = np.fromiter(values, _WIDE.get(kind, dtype), count)
    array = found.astype(dtype, copy=False)
    if kind in _WIDE and (array != found).any():
        raise InputError(f"tensor `{name}` has a value that {datatype} cannot hold")
    return array.reshape(sizes)


def _check_tensors(tensors: Collection[Any], what: str) -> None:
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"`{what}` has {len(tensors)} tensors: at most {MAX_TENSORS} are taken")
    names = set[str]()
    for tensor in tensors:
        if tensor.name in names:
            raise InputError(f"tensor `{shown(tensor.name)}` is in `{what}` twice")
        names.add(tensor.name)
        _check_parameters(tensor, f"tensor `{shown(tensor.name)}`")


def _check_parameters(holder: Any, what: str) -> None:
    for name in REFUSED:
        if name in holder.parameters:
            raise InputError(f"`{name}` of {what} is not supported")
