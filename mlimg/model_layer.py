"""A layer of a model: a plain tar, made anew from the model's files each time it is read.

Nothing is written to disk. A layer whose digests are known notices when its files are not what was hashed; one whose
digests are not known learns them while it is read.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, cast

from mlimg.hashing.layer import LayerHash
from mlimg.runtime.descriptor import CHUNKS_HELD
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import ModelError, printable
from mlimg.runtime.layer_tar import END_OF_ARCHIVE, entry_heads, padding_bytes
from mlimg.runtime.manifest import MANIFEST_NAME
from mlimg.sources import ModelSource, SourceFile

if TYPE_CHECKING:
    import io

_BUFFER_BYTES: Final = 2 * READ_SIZE_BYTES  # three threads meet at each


@dataclass(slots=True)
class Learned:
    """What a reading of a layer finds out: digests of files as soon as each was read, the tar's in the end."""

    sha256s: dict[PurePosixPath, Digest] = field(default_factory=dict)
    digest: Digest | None = None


@dataclass(frozen=True)
class ModelLayer:
    """A layer of a model, a `Blob`: some of its files, and the manifest in the last one.

    What is not hashed yet has no `digest` and not all `sha256s`; `stream` learns them while it goes.
    """

    source: ModelSource
    prefix: PurePosixPath
    files: tuple[SourceFile, ...]
    manifest: bytes | None = None
    sha256s: Mapping[PurePosixPath, Digest] = field(default_factory=dict)
    digest: Digest | None = None

    @property
    def paths(self) -> tuple[PurePosixPath, ...]:
        """The model's files in it, as the manifest names them."""
        return tuple(file.path for file in self.files)

    @cached_property
    def size_bytes(self) -> int:
        """The tar's length."""
        entries_bytes = sum(len(header) + size + padding_bytes(size) for header, size, _ in self._entries())
        return entries_bytes + len(END_OF_ARCHIVE)

    @property
    def knows_files(self) -> bool:
        """Whether the digest of each of its files is known."""
        return all(file.path in self.sha256s for file in self.files)

    @cached_property
    def content_key(self) -> str | None:
        """Names the tar's bytes before they are hashed: equal keys, equal bytes, everywhere.

        None while the digest of one of its files is not known.
        """
        if not self.knows_files:
            return None
        return self._key("layer", {file.path: self.sha256s[file.path].text for file in self.files})

    @property
    def resume_key(self) -> str | None:
        """Follows from the files' digests, else from their fingerprints, and everything else that is in the tar."""
        if self.digest is not None:
            return self.digest.text
        if key := self.content_key:
            return key
        fingerprints = {file.path: file.fingerprint for file in self.files if file.fingerprint}
        return self._key("unhashed", fingerprints) if len(fingerprints) == len(self.files) else None

    def _key(self, kind: str, names: Mapping[PurePosixPath, str]) -> str:
        sha256 = hashlib.sha256()
        for header, _, content in self._entries():
            sha256.update(header)
            sha256.update(names[content.path].encode() if isinstance(content, SourceFile) else content)
        return f"{kind}:{sha256.hexdigest()}"

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The tar. Raises ModelError, before the last chunk, if a file is not what was hashed; LocalIOError.

        A memoryview holds until `CHUNKS_HELD` more chunks were asked for.
        """
        return self.stream(Learned(digest=self.digest))

    def stream(self, learned: Learned, *, whole: bool = True) -> Iterator[bytes | memoryview]:
        """The tar, while its digests go to `learned`; without `whole`, those of its files alone.

        Files come as memoryviews, everything else as bytes. Threads hash them, so that whoever takes the chunks can
        send them at the same time. Raises as `chunks` does.
        """
        # Headers and padding between two contents go as one chunk, and the end waits until every file is checked.
        between = b""
        whole = whole and learned.digest is None
        with closing(_Reading(LayerHash(whole=whole))) as reading:
            for header, size, content in self._entries():
                between += header
                if isinstance(content, SourceFile):
                    reading.hash.update(between)
                    yield between
                    yield from self._content(content, reading, learned)
                    between = bytes(padding_bytes(size))
                else:
                    between += content + bytes(padding_bytes(size))
            between += END_OF_ARCHIVE
            reading.hash.update(between)
            if whole:
                learned.digest = reading.hash.digest()
        yield between

    def _entries(self) -> Iterator[tuple[bytes, int, SourceFile | bytes]]:
        """Header, size and content of each file. The manifest comes first: a reader can check what follows."""
        contents: list[SourceFile | bytes] = list(self.files)
        entries = [(self.prefix / file.path, file.size_bytes, file.executable) for file in self.files]
        if self.manifest is not None:
            contents.insert(0, self.manifest)
            entries.insert(0, (self.prefix / MANIFEST_NAME, len(self.manifest), False))
        for header, (_, size, _), content in zip(entry_heads(entries), entries, contents, strict=True):
            yield header, size, content

    def _content(self, file: SourceFile, reading: "_Reading", learned: Learned) -> Iterator[memoryview]:
        left = file.size_bytes
        reading.hash.begin_file()
        with self.source.open(file.path) as opened:
            reader = cast("io.RawIOBase", opened)  # every binary file has readinto, only its type does not say so
            while left:
                buffer = reading.buffer()
                size = reader.readinto(buffer[: min(left, len(buffer))])
                if not size:
                    raise _changed(file, "is shorter than it was")
                reading.hash.update_file(buffer[:size])
                yield buffer[:size]
                left -= size
            if reader.readinto(bytearray(1)):
                raise _changed(file, "is longer than it was")
        digest = reading.hash.file_digest()
        if learned.sha256s.setdefault(file.path, self.sha256s.get(file.path, digest)) != digest:
            raise _changed(file, "is not the file that was hashed")


class _Reading:
    """One reading of a layer: buffers that are filled in turn, hashed behind whoever fills and sends them."""

    def __init__(self, hashing: LayerHash) -> None:
        self.hash = hashing
        self._buffers: deque[memoryview] = deque()

    def buffer(self) -> memoryview:
        """The next buffer to fill, which holds until `CHUNKS_HELD` more were asked for."""
        self.hash.wait(CHUNKS_HELD - 1)
        if len(self._buffers) < CHUNKS_HELD:  # most layers are short, and need fewer
            self._buffers.appendleft(memoryview(bytearray(_BUFFER_BYTES)))
        else:
            self._buffers.rotate()
        return self._buffers[0]

    def close(self) -> None:
        """Give up the reading; nobody touches its bytes afterwards."""
        self.hash.close()


class Sending:
    """A layer, a `Blob`, that is hashed while it is sent; what was learned on the way stays."""

    def __init__(self, layer: ModelLayer) -> None:
        self._layer = layer
        self._learned = Learned()

    @property
    def size_bytes(self) -> int:
        """The tar's length."""
        return self._layer.size_bytes

    @property
    def digest(self) -> Digest | None:
        """The tar's, once it was read to its end."""
        return self._learned.digest

    @property
    def resume_key(self) -> str | None:
        """The layer's."""
        return self._layer.resume_key

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The tar. Read again, it gives the same bytes or raises ModelError."""
        return self._layer.stream(self._learned)

    def arrived(self) -> ModelLayer:
        """The layer with what is known of it now that it was stored."""
        return replace(self._layer, sha256s=dict(self._learned.sha256s), digest=self._learned.digest)


def _changed(file: SourceFile, how: str) -> ModelError:
    return ModelError(
        f"`{printable(str(file.path))}` changed while it was read: it {how}",
        hint="run again when whatever writes the model has finished",
    )
