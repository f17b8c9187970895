"""protobuf's wire format, as far as it takes to find the large fields of a message without copying them.

https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mlimg.runtime.server.errors import InputError

# As many as a request of the most tensors has, several times over. Each costs time in the event loop.
_MOST_FIELDS: Final = 4096
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Field:
    """A field of bytes, text or a message by its number, and where in its message it begins, its value is, it ends."""

    number: int
    begin: int
    value: int
    end: int


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in their order; those of numbers have the number 0. Raises InputError."""
    position = 0
    for _ in range(_MOST_FIELDS):
        if position == len(message):
            return
        begin = position
        tag, value = _varint(message, position)
        number, kind = divmod(tag, 8)
        if kind == _BYTES:
            length, value = _varint(message, value)
            position = value + length
        elif kind == _VARINT:
            _, position = _varint(message, value)
        elif kind in (_FIXED64, _FIXED32):
            position = value + (8 if kind == _FIXED64 else 4)
        else:
            raise _malformed()
        if number == 0 or position > len(message):
            raise _malformed()
        yield Field(number if kind == _BYTES else 0, begin, value, position)
    if position != len(message):
        raise InputError(f"the request has more than {_MOST_FIELDS} fields")


def texts(message: bytes, *numbers: int) -> list[str]:
    """The fields of these numbers, which are texts; empty where there is none. Raises InputError."""
    found = {field.number: message[field.value : field.end] for field in fields(message) if field.number in numbers}
    try:
        return [found.get(number, b"").decode() for number in numbers]
    except UnicodeDecodeError:
        raise _malformed() from None


def head(number: int, length: int) -> bytes:
    """What stands before a field of `length` bytes."""
    return _to_varint(number * 8 + _BYTES) + _to_varint(length)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise _malformed()


def _to_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _malformed() -> InputError:
    return InputError("the request is no message of the protocol")
