"""Inference requests of the Open Inference Protocol V2 over REST: tensors as JSON, or as bytes after the JSON.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from mlimg.runtime.server.body import parse_object, text, written
from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.exchange import JSON, Query, Reply
from mlimg.runtime.server.metadata import Arrays, ModelMetadata
from mlimg.runtime.server.raw_tensors import from_raw, to_raw
from mlimg.runtime.server.tensors import decode, encode, shown, wire_datatypes

MAX_TENSORS: Final = 256
BINARY: Final = "application/octet-stream"
HEADER_LENGTH: Final = "inference-header-content-length"
_NONE: Final[Mapping[str, Any]] = {}
# Ignoring one of these would give an answer of another form than was asked for.
REFUSED: Final = frozenset(
    {"shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification"}
)


class Wishes(NamedTuple):
    """What a request says of its answer: its id, and which outputs are to come as bytes."""

    identity: str | None
    all_binary: bool
    binary: Mapping[str, bool]


class V2Codec(NamedTuple):
    """`json_bytes` is how much of the body is JSON, where the request says so."""

    json_bytes: int | None = None

    def read(self, _model: ModelMetadata, body: bytes) -> Query:
        """Read a request; its note is a `Wishes`. Raises InputError."""
        if self.json_bytes is None:
            request, rest = parse_object(body), None
        elif self.json_bytes > len(body):
            raise InputError(f"Inference-Header-Content-Length is {self.json_bytes}: the body has {len(body)} bytes")
        else:
            request, rest = parse_object(body[: self.json_bytes]), memoryview(body)[self.json_bytes :]
        parameters = _parameters(request, "the request")
        identity = text(request["id"], "`id`") if "id" in request else None
        wanted, binary = _outputs(request["outputs"]) if "outputs" in request else ([], _NONE)
        wishes = Wishes(identity, _flag(parameters, "binary_data_output", "the request"), binary)
        return Query(_inputs(request.get("inputs"), rest), wanted, wishes)

    def write(self, model: ModelMetadata, query: Query, tensors: Arrays) -> Reply:
        """Write the answer. Raises PredictionError."""
        wishes: Wishes = query.note
        response: dict[str, Any] = {"model_name": model.name}
        if model.version is not None:
            response["model_version"] = model.version
        if wishes.identity is not None:
            response["id"] = wishes.identity
        outputs = response["outputs"] = list[Any]()
        blobs: list[bytes | memoryview] = []
        datatypes = wire_datatypes(tensors, model.outputs)
        for name, array in tensors.items():
            datatype = datatypes[name]
            if wishes.binary.get(name, wishes.all_binary):
                blob = to_raw(array, datatype)
                blobs.append(blob)
                size = {"binary_data_size": len(blob)}
                outputs.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": size})
            else:
                outputs.append(_in_json(name, array, datatype))
        head = written(response)
        if not blobs:
            return Reply(head, JSON)
        return Reply(b"".join((head, *blobs)), BINARY, {HEADER_LENGTH: str(len(head))})


def _in_json(name: str, array: np.ndarray[Any, Any], datatype: str) -> dict[str, Any]:
    try:
        return encode(name, array, datatype)
    except ValueError as error:
        raise PredictionError(f"output `{name}` holds bytes that are not UTF-8, which JSON cannot carry") from error


def _inputs(tensors: object, rest: memoryview | None) -> Arrays:
    """The arrays of a request; the tensors that come as bytes lie one after the other in `rest`."""
    arrays: Arrays = {}
    position = 0
    for name, tensor, parameters in _named(tensors, "inputs"):
        if "binary_data_size" not in parameters:
            if "data" not in tensor:
                raise InputError(f"tensor `{shown(name)}` has no `data`")
            arrays[name] = decode(name, tensor.get("datatype"), tensor.get("shape"), tensor["data"])
            continue
        if rest is None:
            raise InputError(
                f"tensor `{shown(name)}` is binary: where it begins, Inference-Header-Content-Length tells"
            )
        if "data" in tensor:
            raise InputError(f"tensor `{shown(name)}` has `data` and `binary_data_size`")
        size = parameters["binary_data_size"]
        if type(size) is not int or not 0 <= size <= len(rest) - position:
            raise InputError(f"`binary_data_size` of tensor `{shown(name)}` is not a number of bytes that are left")
        arrays[name] = from_raw(name, tensor.get("datatype"), tensor.get("shape"), rest[position : position + size])
        position += size
    if not arrays:
        raise InputError("`inputs` is empty")
    if rest is not None and position != len(rest):
        raise InputError(f"{len(rest) - position} bytes of the body belong to no tensor")
    return arrays


def _outputs(tensors: object) -> tuple[list[str], Mapping[str, bool]]:
    """The outputs that a request selects, and whether those that say so are to come as bytes."""
    wanted: list[str] = []
    binary: dict[str, bool] = {}
    for name, _, parameters in _named(tensors, "outputs"):
        wanted.append(name)
        if "binary_data" in parameters:
            binary[name] = _flag(parameters, "binary_data", f"tensor `{shown(name)}`")
    return wanted, binary


def _named(tensors: object, what: str) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """The tensors of a list, each with its name and its parameters; twice the same name is refused."""
    if not isinstance(tensors, list):
        raise InputError(f"`{what}` must be a list of tensors")
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"`{what}` has {len(tensors)} tensors: at most {MAX_TENSORS} are taken")
    found = {}
    for tensor in tensors:
        if not isinstance(tensor, dict):
            raise InputError(f"`{what}` must be a list of tensors")
        name = text(tensor.get("name"), f"the name of a tensor of `{what}`")
        if name in found:
            raise InputError(f"tensor `{shown(name)}` is in `{what}` twice")
        found[name] = (name, tensor, _parameters(tensor, f"tensor `{shown(name)}`"))
    return list(found.values())


def _parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The parameters of a request or of a tensor, whose name is `what`."""
    if "parameters" not in holder:
        return _NONE
    parameters = holder["parameters"]
    if not isinstance(parameters, dict):
        raise InputError(f"`parameters` of {what} must be an object")
    for name in REFUSED & parameters.keys():
        raise InputError(f"`{name}` of {what} is not supported")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, what: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"`{name}` of {what} must be true or false")
    return value
