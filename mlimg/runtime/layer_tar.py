"""How a model's files stand in the tar of a layer, byte for byte the same whoever writes it.

`docs/model-artifact.md` is the specification. Who packs writes these bytes; who fetches tells from them where in a
layer a file lies, without reading what is before it.
"""

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Final

BLOCK_BYTES: Final = 512
END_OF_ARCHIVE: Final = bytes(2 * BLOCK_BYTES)
_NAME_BYTES: Final = 100  # of a header; what does not fit goes into an extended one
_MAX_OCTAL: Final = 8**11 - 1


def file_header(path: str, size_bytes: int, *, executable: bool = False) -> bytes:
    """What is before a file's bytes: owner 0:0 without names, time 0, mode 0644 or 0755; PAX only where it must be."""
    name = path.encode()
    if len(name) > _NAME_BYTES or size_bytes > _MAX_OCTAL or not path.isascii():
        return _header(path, size_bytes, tarfile.REGTYPE, _mode(executable))
    # The same bytes, ten times as fast: models have up to 50 000 files, and each is named more than once.
    before, after, total = _PLAIN[executable]
    size = b"%011o" % size_bytes
    checksum = b"%06o" % (total + sum(name) + sum(size))
    return b"%b%b%b%b%b%b" % (name.ljust(_NAME_BYTES, b"\0"), before, size, after[:13], checksum, after[13:])


def folder_headers(path: str, known: set[str]) -> Iterator[bytes]:
    """Entries for the folders of `path` that are not `known` yet: an engine would make them with today's time.

    The topmost has none, as it would change the owner of a folder that is the server's.
    """
    new: list[str] = []
    folder = path.rpartition("/")[0]
    while "/" in folder and folder not in known:
        new.append(folder)
        folder = folder.rpartition("/")[0]
    known.update(new)
    for folder in reversed(new):
        yield _header(folder, 0, tarfile.DIRTYPE, 0o755)


def entry_heads(files: Iterable[tuple[PurePosixPath, int, bool]]) -> Iterator[bytes]:
    """What is before the bytes of each file (path, length, whether it is a program) of one layer, folders included."""
    folders: set[str] = set()
    for path, size_bytes, executable in files:
        yield b"".join(folder_headers(str(path), folders)) + file_header(str(path), size_bytes, executable=executable)


def padding_bytes(size_bytes: int) -> int:
    """How many zeros follow that many bytes of content."""
    return -size_bytes % BLOCK_BYTES


def single_head(path: PurePosixPath, size_bytes: int, *, executable: bool) -> bytes:
    """What is before a file's bytes in a layer of its own, which begins with its folders."""
    return next(entry_heads([(path, size_bytes, executable)]))


def single_size_bytes(path: PurePosixPath, size_bytes: int) -> int:
    """The length of a layer that holds one file of that length."""
    head = single_head(path, size_bytes, executable=False)
    return len(head) + size_bytes + padding_bytes(size_bytes) + len(END_OF_ARCHIVE)


def _mode(executable: bool) -> int:
    return 0o755 if executable else 0o644


def _header(path: str, size_bytes: int, kind: bytes, mode: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.type, info.mode = size_bytes, kind, mode
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _plain(mode: int) -> tuple[bytes, bytes, int]:
    """What lies in a plain file's header between name and size, what follows the size, and the sum of both."""
    block = _header("", 0, tarfile.REGTYPE, mode)
    before, after = block[100:124], block[135:148] + block[154:]
    # The checksum counts as eight spaces, of which one is in `after`.
    return before, after, sum(before) + sum(after) + 7 * ord(" ")


_PLAIN: Final = {executable: _plain(_mode(executable)) for executable in (False, True)}
