"""Tensors of the Open Inference Protocol V2: JSON to numpy and back.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md

Everything a client sends is checked before memory is taken for it. `BYTES` are object arrays of `bytes`,
as in Triton's Python clients, whatever the transport.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Self

import numpy as np

from mlimg.runtime.errors import printable
from mlimg.runtime.server.bf16 import rounded
from mlimg.runtime.server.errors import InputError

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "BF16": np.dtype(np.float32),  # numpy has none; FP32 holds each of its values
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
DATATYPES: Final = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
MAX_RANK: Final = 32  # numpy 1 stops here
_NULL: Final = type(None)
_ELEMENTS: Final[Mapping[str, frozenset[type]]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float, _NULL}),
    "O": frozenset({str}),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as the model's metadata describes it; -1 is a dimension of any length.

    `datatype` is None where the model cannot tell: any is taken then.
    """

    name: str
    datatype: str | None
    shape: tuple[int, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Self:
        """Read what a handler's `signature` or a manifest says. Raises ValueError."""
        name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
        if not isinstance(name, str) or not name:
            raise ValueError(f"a tensor of the signature has the name {name!r}")
        if datatype is not None and (not isinstance(datatype, str) or datatype not in DTYPES):
            raise ValueError(f"tensor `{name}` of the signature has the datatype {datatype!r}")
        if not isinstance(shape, Sequence) or not all(isinstance(n, int) and n >= -1 for n in shape):
            raise ValueError(f"tensor `{name}` of the signature has the shape {shape!r}")
        return cls(name, datatype, tuple(shape), dict(value.get("parameters") or {}))

    def to_json(self) -> dict[str, Any]:
        """The tensor as metadata shows it."""
        value: dict[str, Any] = {"name": self.name, "shape": list(self.shape)}
        if self.datatype is not None:
            value["datatype"] = self.datatype
        if self.parameters:
            value["parameters"] = dict(self.parameters)
        return value

    def allows(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape fits."""
        return len(shape) == len(self.shape) and all(
            ours in (-1, theirs) for ours, theirs in zip(self.shape, shape, strict=True)
        )

    def sample(self) -> np.ndarray[Any, Any]:
        """A smallest tensor that fits: zeros, empty texts."""
        shape = tuple(1 if n == -1 else n for n in self.shape)
        if self.datatype == "BYTES":
            return np.full(shape, b"", dtype=np.object_)
        return np.zeros(shape, DTYPES[self.datatype or "FP64"])


def shown(name: object) -> str:
    """A client's text, fit to be echoed in an error."""
    text = printable(str(name))
    return text if len(text) <= 80 else text[:77] + "..."


def decode(name: str, datatype: object, shape: object, data: object) -> np.ndarray[Any, Any]:
    """Make an array of a JSON tensor. `data` is flat, or nested as `shape` says. Raises InputError."""
    known = check_datatype(name, datatype)
    sizes = check_shape(name, shape)
    flat = _flatten(name, sizes, data)
    dtype = DTYPES[known]
    kinds = set(map(type, flat))
    if not kinds <= _ELEMENTS[dtype.kind]:
        wrong = kinds - _ELEMENTS[dtype.kind]
        found = ", ".join(sorted("null" if kind is _NULL else kind.__name__ for kind in wrong))
        raise InputError(f"tensor `{shown(name)}`: {known} cannot hold {found}")
    return _array(name, known, flat).reshape(sizes)


def conform(name: str, array: np.ndarray[Any, Any], spec: TensorSpec) -> np.ndarray[Any, Any]:
    """Give `array` the datatype that the model declares, if no value changes its meaning. Raises InputError.

    A column `[n, 1]` passes for `[n]`, and the other way round.
    """
    if array.ndim == 1 and len(spec.shape) == 2:
        array = array.reshape(-1, 1)
    elif array.ndim == 2 and array.shape[1] == 1 and len(spec.shape) == 1:
        array = array.ravel()
    if not spec.allows(array.shape):
        raise InputError(
            f"tensor `{shown(name)}` has the shape {list(array.shape)}: the model takes {list(spec.shape)}"
        )
    if spec.datatype is None or (array.dtype == DTYPES[spec.datatype] and spec.datatype != "BF16"):
        return array
    wanted = DTYPES[spec.datatype]
    if wanted.kind == "O" or array.dtype.kind == "O" or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise InputError(f"tensor `{shown(name)}` is {DATATYPES[array.dtype]}: the model takes {spec.datatype}")
    cast = _cast(array, spec.datatype)
    fits = np.isinf(cast) == np.isinf(array) if wanted.kind == "f" else cast == array
    if not fits.all():
        raise InputError(f"tensor `{shown(name)}` has a value that {spec.datatype} cannot hold")
    return cast


def as_tensor(value: object) -> np.ndarray[Any, Any]:
    """Make what a handler returned an array of a datatype that the protocol knows. Raises ValueError."""
    array = np.asarray(value)
    if array.ndim == 0:
        array = array.reshape(1)
    if array.dtype.kind in "USO":
        texts = [_as_bytes(item) for item in array.ravel().tolist()]
        encoded = np.empty(len(texts), np.object_)
        encoded[:] = texts
        return encoded.reshape(array.shape)
    if array.dtype in DATATYPES:
        return array
    native = array.dtype.newbyteorder("=")
    if native not in DATATYPES:
        raise ValueError(f"an array of {array.dtype} is no tensor of the protocol")
    return array.astype(native)


def as_texts(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Make `str` of the `bytes` of a `BYTES` tensor; another tensor stays as it is. Raises InputError."""
    if array.dtype.kind != "O":
        return array
    texts = np.empty(array.size, np.object_)
    try:
        texts[:] = [text.decode() for text in array.ravel()]
    except UnicodeDecodeError:
        raise InputError("a text is not UTF-8") from None
    return texts.reshape(array.shape)


def wire_datatypes(tensors: Mapping[str, np.ndarray[Any, Any]], specs: Sequence[TensorSpec]) -> dict[str, str]:
    """As what outputs from `as_tensor` are sent: as what they are, but FP32 as BF16 where the model declares that."""
    datatypes = {name: DATATYPES[array.dtype] for name, array in tensors.items()}
    for spec in specs:
        if spec.datatype == "BF16" and datatypes.get(spec.name) == "FP32":
            datatypes[spec.name] = "BF16"
    return datatypes


def encode(name: str, array: np.ndarray[Any, Any], datatype: str) -> dict[str, Any]:
    """The JSON tensor of an array from `as_tensor`: flat data; NaN and infinities are null. Raises ValueError."""
    if datatype == "BF16":
        array = rounded(array)
    data: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "O":
        data = [text.decode() for text in data]
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        data = [number if math.isfinite(number) else None for number in data]
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": data}


def check_datatype(name: str, datatype: object) -> str:
    """`datatype`, if it is one of the protocol. Raises InputError."""
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise InputError(f"tensor `{shown(name)}`: unknown datatype `{shown(datatype)}`, known are {', '.join(DTYPES)}")
    return datatype


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """`shape`, if a tensor can have it. Raises InputError."""
    if not isinstance(shape, list) or not set(map(type, shape)) <= {int}:
        raise InputError(f"tensor `{shown(name)}`: `shape` must be a list of whole numbers")
    if len(shape) > MAX_RANK:
        raise InputError(f"tensor `{shown(name)}` has {len(shape)} dimensions: at most {MAX_RANK} are taken")
    if shape and not 0 < min(shape) <= max(shape) < 2**63:
        raise InputError(f"tensor `{shown(name)}`: every dimension must be at least 1 and fit 64 bits")
    return tuple(shape)


def _flatten(name: str, shape: tuple[int, ...], data: object) -> list[Any]:
    if not isinstance(data, list):
        raise InputError(f"tensor `{shown(name)}`: `data` must be a list")
    count = math.prod(shape)  # of Python's integers: it cannot overflow
    flat: list[Any] = data
    if shape and flat and type(flat[0]) is list:
        nested = len(flat) == shape[0]
        for size in shape[1:]:
            if not nested or set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
                raise InputError(f"tensor `{shown(name)}`: `data` is not nested as `shape` says")
            flat = list(chain.from_iterable(flat))
    if len(flat) != count:
        raise InputError(f"tensor `{shown(name)}`: shape {list(shape)} holds {count} values, `data` has {len(flat)}")
    return flat


def _array(name: str, datatype: str, flat: list[Any]) -> np.ndarray[Any, Any]:
    dtype = DTYPES[datatype]
    try:
        if dtype.kind == "O":
            array = np.empty(len(flat), np.object_)
            array[:] = [text.encode() for text in flat]
            return array
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            if min(flat) < limits.min or max(flat) > limits.max:
                raise OverflowError
        array = _cast(np.array(flat, np.float64 if dtype.kind == "f" else dtype), datatype)
    except UnicodeEncodeError:
        raise InputError(f"tensor `{shown(name)}` has a text that is not Unicode") from None
    except OverflowError:
        raise InputError(f"tensor `{shown(name)}` has a value that {datatype} cannot hold") from None
    if dtype.kind == "f" and np.count_nonzero(np.isinf(array)):  # twice as fast as `any` on a row
        raise InputError(f"tensor `{shown(name)}` has a value that {datatype} cannot hold")
    return array


def _cast(array: np.ndarray[Any, Any], datatype: str) -> np.ndarray[Any, Any]:
    wanted = DTYPES[datatype]
    if array.dtype != wanted:
        with np.errstate(over="ignore"):
            array = array.astype(wanted)
    return rounded(array) if datatype == "BF16" else array


def _as_bytes(item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    raise ValueError(f"an object array holds {type(item).__name__}: only texts and bytes are tensors")
