"""A model layer's tar becomes files: only those the model's manifest names, only where they belong.

The reader takes the tars that mlimg writes, plain or gzipped by somebody on the way (`docker push` does), and refuses
everything else that a tar can hold. It sniffs the compression: a media type proves nothing.
"""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from mlimg.runtime.digest import READ_SIZE_BYTES
from mlimg.runtime.errors import IntegrityError, LocalIOError, ModelError, printable
from mlimg.runtime.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, ModelFile, ModelManifest, model_path

_BLOCK: Final = 512
_ROOT: Final = PurePosixPath("models")
_MAX_EXTENDED_BYTES: Final = 64 * 1024
_MAX_TRAILER_BYTES: Final = 1024 * 1024
_MAX_DEPTH: Final = 16  # folders before the manifest


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model whose manifest has been read: what its layers may hold, and where in them."""

    manifest: ModelManifest
    manifest_bytes: bytes
    root: PurePosixPath  # the model's folder in a layer: ``models``, or below it

    def by_entry(self) -> dict[PurePosixPath, ModelFile]:
        """The model's files under their names in a layer."""
        return {self.root / file.path: file for file in self.manifest.files}


def unpack(pieces: Iterator[bytes], folder: Path, known: KnownModel | None) -> KnownModel:
    """Write a layer's files below `folder`, each checked while it is written. Reads `pieces` to their end.

    Without `known` the layer is the one whose first file is `mlimg.manifest`. Raises IntegrityError for anything else
    than the model's own files, ModelError for what cannot be read, LocalIOError.
    """
    stream = _Stream(_decompressed(pieces))
    leading: list[PurePosixPath] = []
    if known is None:
        known, leading = _begin(stream)
    files = known.by_entry()
    folders = {parent for path in files for parent in path.parents}
    for path in leading:
        _take_folder(path, folders)
    while (entry := _next_entry(stream)) is not None:
        if entry.is_folder:
            _take_folder(entry.path, folders)
            continue
        file = files.pop(entry.path, None)
        if file is None:
            raise IntegrityError(f"a layer has the file `{entry.path}` twice, or {MANIFEST_NAME} does not name it")
        if entry.size_bytes != file.size_bytes:
            raise IntegrityError(
                f"`{entry.path}` has {entry.size_bytes} bytes in its layer and {file.size_bytes} in {MANIFEST_NAME}"
            )
        _write(stream, file, folder, executable=entry.executable)
        stream.skip_padding(entry.size_bytes)
    return known


def peek_manifest(pieces: Iterator[bytes]) -> KnownModel:
    """Read the manifest with which a model's last layer begins, and nothing behind it. Raises as `unpack`."""
    return _begin(_Stream(_decompressed(pieces)))[0]


@dataclass(frozen=True, slots=True)
class _Entry:
    path: PurePosixPath
    size_bytes: int
    is_folder: bool
    executable: bool


class _Stream:
    """Bytes by the number, out of pieces of any length."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def upto(self, size_bytes: int) -> memoryview:
        """Some bytes, at most `size_bytes`; empty at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return self._rest
            self._rest = memoryview(piece)
        taken, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
        return taken

    def exactly(self, size_bytes: int) -> bytes:
        """Just so many bytes, few enough for memory. Raises IntegrityError at the end."""
        data = bytearray()
        while len(data) < size_bytes:
            piece = self.upto(size_bytes - len(data))
            if not piece:
                raise IntegrityError("a layer ends in the middle of its tar")
            data += piece
        return bytes(data)

    def skip_padding(self, size_bytes: int) -> None:
        """Go to the next block after an entry of that size."""
        self.exactly(-size_bytes % _BLOCK)

    def finish(self) -> None:
        """Read what follows the end of the archive: zeros, as blocks are often filled up. Raises IntegrityError."""
        seen = 0
        while piece := self.upto(READ_SIZE_BYTES):
            seen += len(piece)
            if seen > _MAX_TRAILER_BYTES or any(piece):
                raise IntegrityError("a layer goes on after the end of its tar")


def _begin(stream: _Stream) -> tuple[KnownModel, list[PurePosixPath]]:
    """The manifest with which a model's last layer begins, and the folders before it."""
    folders: list[PurePosixPath] = []
    while (entry := _next_entry(stream)) is not None and len(folders) < _MAX_DEPTH:
        if not entry.is_folder:
            return _read_manifest(stream, entry), folders
        folders.append(entry.path)
    raise ModelError(f"this image is no model: its last layer does not begin with `{MANIFEST_NAME}`")


def _take_folder(path: PurePosixPath, left: set[PurePosixPath]) -> None:
    """Strike a folder off those that the layer may still have, so that nobody can send them without end."""
    if path not in left:
        raise IntegrityError(f"a layer has the folder `{path}` twice, or it holds none of the model's files")
    left.remove(path)


def _decompressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = b""
    while len(first) < 4 and (piece := next(pieces, None)) is not None:
        first += piece
    if first.startswith(b"\x28\xb5\x2f\xfd"):
        raise ModelError("a model layer is compressed with zstd", hint="publish it with mlimg, which does not compress")
    if not first.startswith(b"\x1f\x8b"):
        yield first
        yield from pieces
        return
    inflater = zlib.decompressobj(wbits=31)
    data = first
    while True:
        try:
            yield inflater.decompress(data, READ_SIZE_BYTES)
        except zlib.error as error:
            raise IntegrityError(f"a gzipped layer is damaged: {error}") from error
        if inflater.eof and inflater.unused_data:  # gzip streams may follow one another
            data, inflater = inflater.unused_data, zlib.decompressobj(wbits=31)
            continue
        data = inflater.unconsumed_tail
        while not data:
            following = next(pieces, None)
            if following is None:
                if not inflater.eof:
                    raise IntegrityError("a gzipped layer is cut short")
                return
            if inflater.eof:
                inflater = zlib.decompressobj(wbits=31)
            data = following


def _next_entry(stream: _Stream) -> _Entry | None:
    """The next file or folder, None at the end. Raises IntegrityError for everything else."""
    extended: dict[str, str] = {}
    while True:
        block = stream.exactly(_BLOCK)
        if not any(block):
            stream.finish()
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise IntegrityError(f"a layer is no tar: {error}") from error
        if info.type != tarfile.XHDTYPE:
            return _entry(info, extended)
        if extended or not 0 < info.size <= _MAX_EXTENDED_BYTES:
            raise IntegrityError("a layer has a malformed extended header")
        extended = _parse_extended(stream.exactly(info.size))
        stream.skip_padding(info.size)


def _entry(info: tarfile.TarInfo, extended: dict[str, str]) -> _Entry:
    name = extended.get("path", info.name)
    shown = f"`{printable(name)[:300]}`"
    if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE}:
        raise IntegrityError(f"a layer has {shown}, which is neither a plain file nor a folder")
    try:
        path = model_path(name.removesuffix("/"))
        size = int(extended.get("size", info.size))
    except ValueError as error:
        raise IntegrityError(f"a layer has an entry that no model has: {printable(str(error))[:300]}") from error
    is_folder = info.type == tarfile.DIRTYPE
    if path.parts[0] != str(_ROOT) or (path == _ROOT and not is_folder):
        raise IntegrityError(f"a layer has {shown}, which is not beneath `{_ROOT}/`")
    if size < 0 or (is_folder and size):
        raise IntegrityError(f"a layer gives {shown} the size {size}")
    return _Entry(path, size, is_folder, bool(info.mode & 0o111))


def _parse_extended(data: bytes) -> dict[str, str]:
    """Read PAX records, ``<length> <key>=<value>`` and a line feed. Only keys that name and measure are allowed."""
    records: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 6 else 0
        record = data[len(length) + 1 : size]
        key, equals, value = record.partition(b"=")
        if not space or not equals or size > len(data) or not record.endswith(b"\n"):
            raise IntegrityError("a layer has a malformed extended header")
        name = key.decode("utf-8", "replace")
        if name in {"path", "size"}:
            try:
                records[name] = value[:-1].decode()
            except UnicodeDecodeError as error:
                raise IntegrityError("a layer has a file name that is not UTF-8") from error
        elif name not in {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname"}:
            raise IntegrityError(f"a layer has the extended header `{printable(name)[:100]}`, which models do not need")
        data = data[size:]
    return records


def _read_manifest(stream: _Stream, entry: _Entry) -> KnownModel:
    if entry.path.name != MANIFEST_NAME:
        raise ModelError(f"this image is no model: its last layer does not begin with `{MANIFEST_NAME}`")
    if entry.size_bytes > MAX_MANIFEST_BYTES:
        raise IntegrityError(f"`{entry.path}` is larger than {MAX_MANIFEST_BYTES} bytes")
    data = stream.exactly(entry.size_bytes)
    stream.skip_padding(entry.size_bytes)
    try:
        return KnownModel(ModelManifest.parse(data), data, entry.path.parent)
    except ValueError as error:
        raise IntegrityError(f"`{entry.path}`: {printable(str(error))[:300]}") from error


def _write(stream: _Stream, file: ModelFile, folder: Path, *, executable: bool) -> None:
    target = folder / file.path
    sha256, left = hashlib.sha256(), file.size_bytes
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb", buffering=0) as output:
            while left:
                piece = stream.upto(min(left, READ_SIZE_BYTES))
                if not piece:
                    raise IntegrityError(f"a layer ends in the middle of `{file.path}`")
                sha256.update(piece)
                left -= len(piece)
                while piece:
                    piece = piece[output.write(piece) :]
            os.fchmod(descriptor, 0o755 if executable else 0o644)
            os.fsync(descriptor)
    except OSError as error:
        raise LocalIOError(f"cannot write {target}: {error.strerror}") from error
    if sha256.hexdigest() != file.sha256.hex:
        raise IntegrityError(f"`{file.path}` has other content than {MANIFEST_NAME} says")
