"""Where a model is read from: one module per kind of source."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

from mlimg.runtime.digest import Digest


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as the listing shows it: nothing of it has been read.

    `fingerprint` changes whenever the content may have: equal fingerprints, equal bytes. It is None where the place
    tells nothing so sure (a local file that was written a moment ago). `sha256` is what the listing itself says the
    content is; whoever reads the file checks it.
    """

    path: PurePosixPath
    size_bytes: int
    executable: bool = False
    fingerprint: str | None = None
    sha256: Digest | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """The files of a model, sorted by path; paths are valid model paths and do not collide.

    `origin` is what `source` of `mlimg.manifest` says of a remote model: ``uri``, and ``revision`` where there is one.
    """

    files: tuple[SourceFile, ...]
    origin: Mapping[str, str] | None = None

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)

    def __iter__(self) -> Iterator[SourceFile]:
        return iter(self.files)


class ModelSource(Protocol):
    """Where a model's files come from. Listing is cheap; bytes are read one file at a time."""

    def inventory(self) -> Inventory:
        """List the files. Raises ModelError for what cannot be a model, LocalIOError for what cannot be read."""

    def open(self, path: PurePosixPath) -> BinaryIO:
        """Open one listed file, unbuffered. Raises ModelError when it is gone or is another file now."""
