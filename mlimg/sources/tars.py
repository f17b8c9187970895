"""The files in a plain tar that lies somewhere else: where each begins, so that it can be read on its own.

Tars of any maker are read as far as models need it: plain files and folders, names in PAX or GNU records.
https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import IntegrityError, ModelError, printable

_BLOCK: Final = 512
_MAX_RECORD_BYTES: Final = 64 * 1024
_GNU_LONG_NAME: Final = b"L"


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in a tar: its bytes begin at `offset`."""

    path: str
    offset: int
    size_bytes: int
    executable: bool
    sha256: Digest | None = None


def members(tar: io.RawIOBase, *, hashing: bool, name: str) -> Iterator[Member]:
    """The files in a tar. With `hashing` all of it is read, and each file comes with its sha256.

    Raises IntegrityError for what is no tar, ModelError for what no model holds, and what reading raises.
    """
    extended: dict[str, str] = {}
    while any(block := _exactly(tar, _BLOCK, name)):
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{name} is no plain tar: {error}") from error
        if info.type in {tarfile.XHDTYPE, tarfile.XGLTYPE, _GNU_LONG_NAME}:
            data = _record(tar, info.size, name)
            if info.type == tarfile.XHDTYPE:
                extended |= _pax(data, name)
            elif info.type == _GNU_LONG_NAME:
                extended["path"] = data.rstrip(b"\0").decode("utf-8", "replace")
            continue
        path, size = extended.get("path", info.name), _size(extended, info.size, name)
        extended = {}
        if info.type == tarfile.DIRTYPE:
            _skip(tar, size + -size % _BLOCK, name, reading=hashing)
        elif info.type in {tarfile.REGTYPE, tarfile.AREGTYPE}:
            offset = tar.tell()
            sha256 = _hash(tar, size, name) if hashing else None
            if not hashing:
                _skip(tar, size, name, reading=False)
            _skip(tar, -size % _BLOCK, name, reading=hashing)
            yield Member(path.removeprefix("./"), offset, size, bool(info.mode & 0o100), sha256)
        else:
            raise ModelError(
                f"{name} has `{printable(path)[:200]}`, which is not a plain file", hint="a model is plain files only"
            )
    while hashing and tar.read(READ_SIZE_BYTES):
        pass  # to the end, where the digest of the whole is compared


def _record(tar: io.RawIOBase, size_bytes: int, name: str) -> bytes:
    if not 0 < size_bytes <= _MAX_RECORD_BYTES:
        raise IntegrityError(f"{name} has a malformed extended header")
    data = _exactly(tar, size_bytes, name)
    _exactly(tar, -size_bytes % _BLOCK, name)
    return data


def _pax(data: bytes, name: str) -> dict[str, str]:
    """Read records, ``<length> <key>=<value>`` and a line feed; those that name and measure count."""
    records: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 6 else 0
        key, equals, value = data[len(length) + 1 : size].partition(b"=")
        if not space or not equals or size > len(data) or not value.endswith(b"\n"):
            raise IntegrityError(f"{name} has a malformed extended header")
        if key in {b"path", b"size"}:
            records[key.decode()] = value[:-1].decode("utf-8", "replace")
        elif key.startswith(b"GNU.sparse"):
            raise ModelError(
                f"{name} has a sparse file", hint="pack the model without holes: `tar --hole-detection` off"
            )
        data = data[size:]
    return records


def _size(extended: dict[str, str], size_bytes: int, name: str) -> int:
    text = extended.get("size", str(size_bytes))
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise IntegrityError(f"{name} has a file of a malformed size")
    return int(text)


def _hash(tar: io.RawIOBase, size_bytes: int, name: str) -> Digest:
    sha256, left = hashlib.sha256(), size_bytes
    while left:
        piece = tar.read(min(left, READ_SIZE_BYTES))
        if not piece:
            raise IntegrityError(f"{name} ends in the middle of a file")
        sha256.update(piece)
        left -= len(piece)
    return Digest("sha256:" + sha256.hexdigest())


def _skip(tar: io.RawIOBase, size_bytes: int, name: str, *, reading: bool) -> None:
    """Go on by so many bytes; a file that is to be checked as a whole must be read on the way."""
    if not reading:
        tar.seek(size_bytes, io.SEEK_CUR)
        return
    while size_bytes:
        size_bytes -= len(_exactly(tar, min(size_bytes, READ_SIZE_BYTES), name))


def _exactly(tar: io.RawIOBase, size_bytes: int, name: str) -> bytes:
    data = b""
    while len(data) < size_bytes:
        piece = tar.read(size_bytes - len(data))
        if not piece:
            raise IntegrityError(f"{name} ends in the middle of its tar")
        data += piece
    return data
