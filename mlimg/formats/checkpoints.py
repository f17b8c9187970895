"""The index of TensorFlow's variables, which says how long the files with their values are."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from mlimg.formats.looks import PART, Looks
from mlimg.peek import Peek, protobuf_fields, varint

_NAME: Final = "variables.index"
_MARK: Final = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES: Final = 48
_MOST_ENTRIES: Final = 40_000  # that the ends of a file have room for, unless blocks are named again and again


def variables(ends: Peek) -> Looks | None:
    """A sorted table of https://github.com/tensorflow/tensorflow/blob/v2.20.0/tensorflow/core/lib/io/format.h.

    The first entry is a BundleHeaderProto (1: number of files), each other a BundleEntryProto (3: file, 4: offset,
    5: size).
    """
    if ends.path.name != _NAME:
        return None
    if not ends.tail.endswith(_MARK):
        return Looks(PART, damage="it has no end" if ends.size_bytes else "it is empty")
    files, sizes = 0, dict[int, int]()
    try:
        for key, value in islice(_entries(ends), _MOST_ENTRIES):
            fields = {number: number_value for number, wire, number_value, _ in protobuf_fields(value) if wire == 0}
            if not key:
                files = fields.get(1, 1)
            else:
                file = fields.get(3, 0)
                sizes[file] = max(sizes.get(file, 0), fields.get(4, 0) + fields.get(5, 0))
    except IndexError:
        return Looks(PART, damage="its content is not that of an index")
    if not files:  # its block lies in the middle of a long index
        return Looks(PART)
    needs = {f"variables.data-{file:05}-of-{files:05}": size for file, size in sizes.items()}
    return Looks(PART, needs=needs)


def _entries(ends: Peek) -> Iterator[tuple[bytes, bytes]]:
    footer = ends.tail[-_FOOTER_BYTES:]
    _, at = varint(footer, 0)
    _, at = varint(footer, at)
    for _, handle in _block(ends, footer[at:]):
        yield from _block(ends, handle)


def _block(ends: Peek, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block, where it lies within what was looked at. Raises IndexError."""
    start, at = varint(handle, 0)
    size, _ = varint(handle, at)
    data = ends.at(start, size + 1)
    if data is None or data[-1]:  # compressed
        return
    restarts = int.from_bytes(data[size - 4 : size], "little")
    key, at, end = b"", 0, size - 4 - 4 * restarts
    while at < end:
        shared, at = varint(data, at)
        own, at = varint(data, at)
        length, at = varint(data, at)
        key = key[:shared] + data[at : at + own]
        yield key, data[at + own : at + own + length]
        at += own + length
