"""Formats that are tensors behind a header, such as safetensors, and those that only begin with a mark."""

import json
import re
from typing import Final

from mlimg.formats.looks import PART, Looks
from mlimg.peek import Peek

_NO_HEADER: Final = "its header is none of safetensors"
_MAGIC: Final = (
    (b"CBM1", 0, "catboost"),
    (b"\x89HDF\r\n\x1a\n", 0, "hdf5"),
    (b"TFL3", 4, "tflite"),
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", 0, "torch"),  # before PyTorch 1.6
)


def by_magic(ends: Peek) -> Looks | None:
    """Formats that begin with a mark, and say nothing more here."""
    for magic, offset, name in _MAGIC:
        if ends.head.startswith(magic, offset):
            return Looks(name, runs_code=name == "torch")
    return None


def safetensors(ends: Peek) -> Looks | None:
    """https://huggingface.co/docs/safetensors: eight bytes of length, then a JSON object of that length, then data."""
    length = int.from_bytes(ends.head[:8], "little")
    if ends.head[8:9] != b"{" or length > 100_000_000:
        return None
    if 8 + length > ends.size_bytes:
        return Looks("safetensors", damage="it ends within its header")
    return Looks("safetensors", damage=_data_damage(ends.head[8 : 8 + length], length, ends.size_bytes - 8 - length))


def _data_damage(header: bytes, length: int, data_bytes: int) -> str:
    if len(header) < length:  # longer than what was looked at
        return ""
    try:
        tensors = json.loads(header)
        end = max(
            (int(tensor["data_offsets"][1]) for name, tensor in tensors.items() if name != "__metadata__"), default=0
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return _NO_HEADER
    if not 0 <= end < 2**63:
        return _NO_HEADER
    if data_bytes < end:
        return f"its data are {data_bytes} bytes of {end}"
    return "" if data_bytes == end else f"{data_bytes - end} bytes follow its data"


def shards(ends: Peek) -> Looks | None:
    """The index of a model in several safetensors files: which of them has which tensor."""
    if not ends.path.name.endswith(".safetensors.index.json"):
        return None
    if not ends.tail.rstrip().endswith(b"}"):
        return Looks(PART, damage="it is empty" if not ends.size_bytes else "it has no end")
    names = re.findall(rb'"([^"/\\]{1,200}\.safetensors)"', ends.head + ends.tail)
    return Looks(PART, needs={name.decode(errors="replace"): 0 for name in names})
