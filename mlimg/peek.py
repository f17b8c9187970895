"""What the first and last bytes of a file say about the rest. Nothing here executes or trusts what it reads."""

import bz2
import contextlib
import io
import lzma
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final, Protocol

HEAD_BYTES: Final = 64 * 1024
_ZIP_ENTRY: Final = b"PK\x01\x02"  # in the central directory, which lies at the end
_ZIP_END: Final = b"PK\x05\x06"
_STRINGS: Final = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})
_LZMA_BYTES: Final = 256 * 1024 * 1024  # of memory; `xz -9` needs 65 MiB to unpack
_UNPACKED_BYTES: Final = 16 * 1024 * 1024
_CANNOT_UNPACK: Final = (zlib.error, OSError, EOFError, lzma.LZMAError, IndexError, ValueError)
_LZ4: Final = b"\x04\x22\x4d\x18"
_XZ: Final = b"\xfd7zXZ\x00"
_XZ_END: Final = b"YZ"
_BZ2: Final = b"BZh"
_BZ2_HEAD_BYTES: Final = 1024 * 1024  # bzip2 gives nothing before it has a whole block, of at most 900 kB
_MLMODEL_BYTES: Final = 1024 * 1024  # it names each column
_GGUF_HEAD_BYTES: Final = 16 * 1024 * 1024  # the whole vocabulary lies before the list of tensors
_ZIP_TAIL_BYTES: Final = 16 * 1024 * 1024
_ZIP64_MARK: Final = b"PK\x06\x07"
_ZIP64_BYTES: Final = 56 + 20  # two more ends, which lie before the usual one in a large zip
_SAFETENSORS_HEAD_BYTES: Final = 4 * 1024 * 1024  # some hundred bytes for each tensor


@dataclass(frozen=True, slots=True)
class Peek:
    """The two ends of a file; both hold all of it when it is small."""

    path: PurePosixPath
    size_bytes: int
    head: bytes
    tail: bytes

    def at(self, start: int, size_bytes: int) -> bytes | None:
        """Bytes from the middle of the file, where one of the ends holds them."""
        if start + size_bytes <= len(self.head):
            return self.head[start : start + size_bytes]
        begin = start - (self.size_bytes - len(self.tail))
        return self.tail[begin : begin + size_bytes] if 0 <= begin <= len(self.tail) - size_bytes else None


def peek(path: PurePosixPath, size_bytes: int, opened: BinaryIO) -> Peek:
    """Read the two ends of an open file. Raises what reading it raises."""
    head = _read(opened, HEAD_BYTES)
    head += _read(opened, _telling_bytes(path, head) - len(head))
    if size_bytes <= len(head):  # a remote file would be asked for twice
        return Peek(path, size_bytes, head, head)
    opened.seek(size_bytes - HEAD_BYTES)
    tail = _read(opened, HEAD_BYTES)
    if (more := _directory_bytes(head, tail)) > HEAD_BYTES:
        begin = max(0, size_bytes - more)
        opened.seek(begin)
        tail = _read(opened, size_bytes - begin)
    return Peek(path, size_bytes, head, tail)


def _telling_bytes(path: PurePosixPath, head: bytes) -> int:
    """How much of a file's start says what it is: most need no more than a usual head."""
    if path.name == "MLmodel":
        return _MLMODEL_BYTES
    if head.startswith(_BZ2):
        return _BZ2_HEAD_BYTES
    if head.startswith(b"GGUF"):
        return _GGUF_HEAD_BYTES
    if head[8:9] == b"{":
        return min(8 + int.from_bytes(head[:8], "little"), _SAFETENSORS_HEAD_BYTES)
    return 0


def _directory_bytes(head: bytes, tail: bytes) -> int:
    """How much of a zip's end holds its directory and a little more: one of many members is longer than a tail."""
    end = tail.rfind(_ZIP_END)
    if end < 0 or not head.startswith(b"PK\x03\x04"):
        return 0
    size_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
    return min(HEAD_BYTES + size_bytes + len(tail) - end, _ZIP_TAIL_BYTES)


def _read(opened: BinaryIO, size_bytes: int) -> bytes:
    """Read that much, or to the end: one read of an unbuffered file may give less."""
    data = b""
    while len(data) < size_bytes and (part := opened.read(size_bytes - len(data))):
        data += part
    return data


@dataclass(frozen=True, slots=True)
class PickleHead:
    """The start of a pickle: the modules it would import, in order, and whether all of it was seen to its STOP."""

    modules: tuple[str, ...]
    complete: bool


def decompressed_head(head: bytes) -> bytes | None:
    """Unpack up to 64 KiB of what `head` starts; None if it is not compressed, or not as its mark says.

    The compressions are those of joblib: https://joblib.readthedocs.io/en/stable/persistence.html
    """
    with contextlib.suppress(*_CANNOT_UNPACK):
        if head.startswith(_LZ4):
            return _lz4_head(head)
        if unpacker := _unpacker(head):
            return unpacker.decompress(head, HEAD_BYTES)
    return None


def compression_is_cut(ends: Peek) -> bool:
    """Whether compressed content lacks its end, where that can be told: in a file small enough to be seen whole."""
    unpacker = _unpacker(ends.head)
    if not unpacker or ends.size_bytes > len(ends.head):
        return ends.head.startswith(_XZ) and not ends.tail.endswith(_XZ_END)
    with contextlib.suppress(*_CANNOT_UNPACK):
        unpacker.decompress(ends.head, _UNPACKED_BYTES)
        return unpacker.needs_input
    return True


def pickle_head(head: bytes) -> PickleHead | None:
    """Read the opcodes that `head` holds; None if it does not start a pickle.

    Protocols 0 and 1 have no mark at their start, so they count only where every opcode is good and something is
    imported, as any saved model does.
    """
    marked = len(head) > 1 and head[0] == 0x80 and head[1] <= 5
    strings: list[str] = []
    modules: list[str] = []
    count = 0
    complete = cut = False
    try:
        for code, argument, _ in pickletools.genops(io.BytesIO(head[:HEAD_BYTES])):
            count += 1
            if code.name in _STRINGS:
                strings = [*strings[-1:], str(argument)]
            elif code.name in {"GLOBAL", "INST"}:
                modules.append(str(argument).partition(" ")[0])
            elif code.name == "STACK_GLOBAL" and len(strings) == 2:
                modules.append(strings[0])
            complete = code.name == "STOP"
    except (ValueError, UnicodeError, IndexError):
        # Raw arrays between the opcodes (joblib) and the end of the head look the same from here.
        cut = True
    if (marked and count > 1) or (modules and not cut):
        return PickleHead(tuple(modules), complete)
    return None


def zip_members(ends: Peek, *, content_of: str) -> dict[str, bytes | None] | None:
    """The members at the end of a zip's directory, with the content of the named one where the ends hold it.

    None if the file does not end as a zip does.
    """
    end = ends.tail.rfind(_ZIP_END)
    if end < 0:
        return None
    size_bytes = int.from_bytes(ends.tail[end + 12 : end + 16], "little")
    large = ends.tail[end - 20 : end - 16] == _ZIP64_MARK
    at = max(0, end - size_bytes - (_ZIP64_BYTES if large else 0))
    members = {}
    while ends.tail.startswith(_ZIP_ENTRY, at):
        name_bytes, *more = (int.from_bytes(ends.tail[at + field : at + field + 2], "little") for field in (28, 30, 32))
        name = ends.tail[at + 46 : at + 46 + name_bytes].decode("utf-8", errors="replace")
        # Of one alone: any number of members may be said to lie in the same place.
        members[name] = _zip_content(ends, ends.tail[at : at + 46]) if name == content_of else None
        at += 46 + name_bytes + sum(more)
    return members


def _zip_content(ends: Peek, entry: bytes) -> bytes | None:
    """https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7 and 4.3.12."""
    method, size_bytes, at = (int.from_bytes(entry[a:b], "little") for a, b in ((10, 12), (20, 24), (42, 46)))
    local = ends.at(at, 30) or b""
    start = at + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    data = ends.at(start, size_bytes) if local else None
    if data is None or method == zipfile.ZIP_STORED:
        return data
    with contextlib.suppress(zlib.error):
        if method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(wbits=-15).decompress(data, HEAD_BYTES)
    return None


def protobuf_fields(head: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, value (of bytes: their length) and end of the top-level fields, until one is bad.

    https://protobuf.dev/programming-guides/encoding/
    """
    at = 0
    with contextlib.suppress(IndexError):
        while at < len(head):
            tag, at = varint(head, at)
            value, at = varint(head, at)
            if tag & 7 not in {0, 2}:  # neither a number nor bytes: no model's top level has others
                return
            at += value if tag & 7 == 2 else 0
            yield tag >> 3, tag & 7, value, at


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends. Raises IndexError."""
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError


def _lz4_head(head: bytes) -> bytes:
    """Unpack the first block of an LZ4 frame as far as `head` has it. Raises IndexError, ValueError.

    https://github.com/lz4/lz4/blob/v1.10.0/doc/lz4_Frame_format.md and lz4_Block_format.md
    """
    flags = head[4]
    at = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    size = int.from_bytes(head[at : at + 4], "little")
    block = head[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
    if size & 0x80000000:
        return block
    out = bytearray()
    at = 0
    while at < len(block) and len(out) < HEAD_BYTES:
        token = block[at]
        length, at = _lz4_length(block, at + 1, token >> 4)
        out += block[at : at + length]
        at += length
        if at + 2 > len(block):
            break
        offset = int.from_bytes(block[at : at + 2], "little")
        length, at = _lz4_length(block, at + 2, token & 15)
        if not 0 < offset <= len(out):
            raise ValueError("an offset leads out of the block")
        for _ in range(min(length + 4, HEAD_BYTES)):
            out.append(out[-offset])
    return bytes(out)


def _lz4_length(block: bytes, at: int, nibble: int) -> tuple[int, int]:
    length = nibble
    while nibble == 15:
        length += block[at]
        at += 1
        if block[at - 1] != 255:
            break
    return length, at


class _Unpacker(Protocol):
    @property
    def needs_input(self) -> bool:
        """Whether more content would give more: neither the end nor `max_length` was reached."""

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Zlib:
    """zlib's object under the words of the others."""

    def __init__(self, wbits: int) -> None:
        self._object = zlib.decompressobj(wbits)

    @property
    def needs_input(self) -> bool:
        return not self._object.eof and not self._object.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(data, max_length)


_UNPACKERS: Final[Mapping[bytes, Callable[[], _Unpacker]]] = {
    b"\x1f\x8b": lambda: _Zlib(31),
    _BZ2: bz2.BZ2Decompressor,
    _XZ: lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _LZMA_BYTES),
    b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, _LZMA_BYTES),
    b"x": lambda: _Zlib(15),
}


def _unpacker(head: bytes) -> _Unpacker | None:
    """What unpacks that compression; Python has nothing for LZ4."""
    return next((make() for magic, make in _UNPACKERS.items() if head.startswith(magic)), None)
