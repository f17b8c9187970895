"""GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

import struct
from typing import Final

from mlimg.formats.looks import Looks
from mlimg.peek import Peek

_SCALAR_BYTES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING: Final = 8
_ARRAY: Final = 9
_MOST_DIMENSIONS: Final = 4
# Elements and bytes of a block, by the tensor's type: plain numbers and the usual quantisations. Of others only the
# first byte is known to be needed.
_BLOCKS: Final = {
    **dict.fromkeys((1, 30), (1, 2)),
    **dict(zip((0, 2, 3, 6, 7, 8), ((1, 4), (32, 18), (32, 20), (32, 22), (32, 24), (32, 34)), strict=True)),
    **dict(zip(range(10, 15), ((256, 84), (256, 110), (256, 144), (256, 176), (256, 210)), strict=True)),
}


def gguf(ends: Peek) -> Looks | None:
    """The mark, the version, metadata, a list of tensors, and their data to the end of the file."""
    if not ends.head.startswith(b"GGUF"):
        return None
    (version,) = struct.unpack("<I", ends.head[4:8].ljust(4, b"\0"))
    if version not in {2, 3}:
        return Looks("gguf", damage=f"it is of GGUF version {version}, and llama.cpp reads 2 and 3")
    try:
        end = _Header(ends.head).data_end()
    except (struct.error, OverflowError):
        whole = ends.size_bytes == len(ends.head)
        return Looks("gguf", damage="it ends within its header" if whole else "")
    except (ValueError, RecursionError):
        return Looks("gguf", damage="its header is none of GGUF")
    return Looks("gguf", damage=f"it has {ends.size_bytes} bytes of {end}" if ends.size_bytes < end else "")


class _Header:
    """Reads on from where it stands. Raises struct.error at the end of what is there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 8
        self._alignment = 32

    def data_end(self) -> int:
        """Where the file ends at least. Raises ValueError for what cannot be."""
        tensors, entries = self._number("Q"), self._number("Q")
        for _ in range(entries):
            key = self._string()
            kind = self._number("I")
            if key == b"general.alignment" and kind == 4:
                self._alignment = max(1, self._number("I"))
            else:
                self._skip(kind)
        ends = [0]
        for _ in range(tensors):
            self._string()
            elements = 1
            dimensions = self._number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(dimensions)
            for _ in range(dimensions):
                elements *= self._number("Q")
            per_block, block_bytes = _BLOCKS.get(self._number("I"), (0, 0))
            needed = elements // per_block * block_bytes if per_block else 1
            ends.append(self._number("Q") + needed)
        return -(-self._at // self._alignment) * self._alignment + max(ends) if tensors else self._at

    def _number(self, code: str) -> int:
        (number,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(code)
        return int(number)

    def _string(self) -> bytes:
        length = self._number("Q")
        self._at += length
        return self._data[self._at - length : self._at]

    def _skip(self, kind: int) -> None:
        if kind in _SCALAR_BYTES:
            self._at += _SCALAR_BYTES[kind]
        elif kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            of, count = self._number("I"), self._number("Q")
            if of in _SCALAR_BYTES:
                self._at += _SCALAR_BYTES[of] * count
                return
            for _ in range(count):
                self._skip(of)
        else:
            raise ValueError(kind)
