"""The digests of a layer's tar and of the files in it, made behind whoever reads and sends the bytes.

Every byte of a file belongs to both. Where the processor makes two digests at once, one thread does; else two do, and
the second costs as much as the first (`docs/decisions/0006`).
"""

import hashlib
from functools import partial
from typing import Protocol

from mlimg.hashing import sha256
from mlimg.hashing.behind import HashBehind
from mlimg.runtime.digest import Digest


class LayerHash(Protocol):
    """The digests under way. Who gives a chunk keeps it as it is until `wait` says so."""

    def update(self, chunk: bytes) -> None:
        """Hash what is in the tar and in no file: headers and padding."""
        ...

    def begin_file(self) -> None:
        """What comes is a file's, and the file begins at a whole block of the tar."""
        ...

    def update_file(self, chunk: memoryview) -> None:
        """Hash bytes of the file, which may be written to: soon."""
        ...

    def file_digest(self) -> Digest:
        """The file's digest, now that it is here to its end."""
        ...

    def digest(self) -> Digest:
        """The tar's digest, now that it is here to its end."""
        ...

    def wait(self, behind: int = 0) -> None:
        """Until no more than the last `behind` chunks are not hashed."""
        ...

    def close(self) -> None:
        """End the threads; they touch no chunk afterwards."""
        ...


def layer_hash(*, whole: bool) -> LayerHash:
    """Begin a layer; with `whole` the tar is hashed, too."""
    return _Together() if whole and sha256.AVAILABLE else _Apart(whole=whole)


def threads_each() -> int:
    """How many processors hashing one layer keeps busy."""
    return 1 if sha256.AVAILABLE else 2


class _Together:
    def __init__(self) -> None:
        self._tar, self._file = sha256.Sha256(), sha256.Sha256()
        self._thread = HashBehind("hash-layer")

    def update(self, chunk: bytes) -> None:
        self._thread.update(self._tar.update, chunk)

    def begin_file(self) -> None:
        self._file = sha256.Sha256()

    def update_file(self, chunk: memoryview) -> None:
        self._thread.update(partial(self._tar.update_with, self._file), chunk)

    def file_digest(self) -> Digest:
        self.wait()
        return Digest("sha256:" + self._file.hexdigest())

    def digest(self) -> Digest:
        self.wait()
        return Digest("sha256:" + self._tar.hexdigest())

    def wait(self, behind: int = 0) -> None:
        self._thread.wait(behind)

    def close(self) -> None:
        self._thread.close()


class _Apart:
    def __init__(self, *, whole: bool) -> None:
        self._tar = hashlib.sha256() if whole else None
        self._file = hashlib.sha256()
        self._tar_thread, self._file_thread = HashBehind("hash-layer"), HashBehind("hash-file")

    def update(self, chunk: bytes | memoryview) -> None:
        if self._tar is not None:
            self._tar_thread.update(self._tar.update, chunk)

    def begin_file(self) -> None:
        self._file = hashlib.sha256()

    def update_file(self, chunk: memoryview) -> None:
        self._file_thread.update(self._file.update, chunk)
        self.update(chunk)

    def file_digest(self) -> Digest:
        self._file_thread.wait()
        return Digest("sha256:" + self._file.hexdigest())

    def digest(self) -> Digest:
        self._tar_thread.wait()
        return Digest(f"sha256:{self._tar.hexdigest()}" if self._tar else "")

    def wait(self, behind: int = 0) -> None:
        self._tar_thread.wait(behind)
        self._file_thread.wait(behind)

    def close(self) -> None:
        self._tar_thread.close()
        self._file_thread.close()
