"""Tensors as bytes, as V2 has them in binary tensors and gRPC in raw contents: little endian, row major, no padding.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html

An element of `BYTES` is its length, 4 bytes, and its bytes.
"""

import math
import struct
from typing import Any, Final

import numpy as np

from mlimg.runtime.server.bf16 import halves, widened
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.tensors import DTYPES, check_datatype, check_shape, shown

_LENGTH: Final = struct.Struct("<I")
_HALF: Final = np.dtype("<u2")


def from_raw(name: str, datatype: object, shape: object, data: memoryview) -> np.ndarray[Any, Any]:
    """Make an array of a tensor's bytes. Raises InputError.

    It is a copy, since bytes from a network lie where they lie: a handler's arrays are aligned and its own to change.
    """
    known = check_datatype(name, datatype)
    sizes = check_shape(name, shape)
    count = math.prod(sizes)  # of Python's integers: it cannot overflow
    if known == "BYTES":
        return _texts(name, count, data).reshape(sizes)
    dtype = DTYPES[known]
    wire = _HALF if known == "BF16" else dtype.newbyteorder("<")
    size_bytes = count * wire.itemsize
    if len(data) != size_bytes:
        raise InputError(f"tensor `{shown(name)}`: {known} {list(sizes)} takes {size_bytes} bytes, not {len(data)}")
    if dtype.kind == "b" and (np.frombuffer(data, np.uint8) > 1).any():
        raise InputError(f"tensor `{shown(name)}`: a byte of BOOL is 0 or 1")
    array = np.frombuffer(data, wire)
    if known == "BF16":
        return widened(array).reshape(sizes)
    return array.astype(dtype).reshape(sizes)


def to_raw(array: np.ndarray[Any, Any], datatype: str) -> bytes | memoryview:
    """The bytes of an array from `as_tensor`, not copied if they are as they should be; `len` is their number."""
    if array.dtype.kind == "O":
        return b"".join(part for text in array.ravel() for part in (_LENGTH.pack(len(text)), text))
    if datatype == "BF16":
        array = halves(array)
    wire = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(wire).reshape(-1).view(np.uint8).data


def _texts(name: str, count: int, data: memoryview) -> np.ndarray[Any, Any]:
    whole, texts, position = len(data), list[bytes](), 0
    # Each element takes 4 bytes at least, so that a shape cannot claim more memory than was sent.
    while len(texts) < count and position + 4 <= whole:
        (length,) = _LENGTH.unpack_from(data, position)
        position += 4 + length
        if position > whole:
            break
        texts.append(bytes(data[position - length : position]))
    if len(texts) != count or position != whole:
        raise InputError(f"tensor `{shown(name)}`: its {whole} bytes are not {count} elements, each after its length")
    array = np.empty(count, np.object_)
    array[:] = texts
    return array
