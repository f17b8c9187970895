"""The digests of a layer's tar and of the files in it, made behind whoever reads and sends the bytes.

Every byte of a file belongs to both. Where the processor makes two digests at once, one thread does; else two do, and
the second costs as much as the first (`docs/decisions/0006`).
"""

import hashlib
from functools import partial

from mlimg.hashing import sha256
from mlimg.hashing.behind import HashBehind
from mlimg.runtime.digest import Digest


def threads_each() -> int:
    """How many processors hashing one layer keeps busy."""
    return 1 if sha256.AVAILABLE else 2


class LayerHash:
    """The digests under way; without `whole` the files' alone. Who gives a chunk keeps it until `wait` says so."""

    def __init__(self, *, whole: bool) -> None:
        self._new = sha256.Sha256 if whole and sha256.AVAILABLE else hashlib.sha256
        self._tar = self._new() if whole else None
        self._file = self._new()
        self._tar_thread, self._file_thread = HashBehind("hash-layer"), HashBehind("hash-file")

    def update(self, chunk: bytes | memoryview) -> None:
        """Hash what is in the tar and in no file: headers and padding."""
        if self._tar is not None:
            self._tar_thread.update(self._tar.update, chunk)

    def begin_file(self) -> None:
        """What comes is a file's, and the file begins at a whole block of the tar."""
        self._file = self._new()

    def update_file(self, chunk: memoryview) -> None:
        """Hash bytes of the file, which may be written to: soon."""
        if isinstance(self._tar, sha256.Sha256) and isinstance(self._file, sha256.Sha256):
            self._tar_thread.update(partial(self._tar.update_with, self._file), chunk)
            return
        self._file_thread.update(self._file.update, chunk)
        self.update(chunk)

    def file_digest(self) -> Digest:
        """The file's digest, now that it is here to its end."""
        self.wait()
        return Digest("sha256:" + self._file.hexdigest())

    def digest(self) -> Digest | None:
        """The tar's digest, now that it is here to its end."""
        self.wait()
        return Digest("sha256:" + self._tar.hexdigest()) if self._tar is not None else None

    def wait(self, behind: int = 0) -> None:
        """Until no more than the last `behind` chunks are not hashed."""
        self._tar_thread.wait(behind)
        self._file_thread.wait(behind)

    def close(self) -> None:
        """End the threads; they touch no chunk afterwards."""
        self._tar_thread.close()
        self._file_thread.close()
