"""Blobs to be sent."""

import hashlib
from collections.abc import Iterator

from mlimg.runtime.digest import Digest


class OnItsWay:
    """A blob whose digest nobody knows before it was read."""

    resume_key: str | None = None

    def __init__(self, data: bytes, piece_bytes: int = 100_000) -> None:
        self.digest: Digest | None = None
        self.size_bytes = len(data)
        self._data = data
        self._piece_bytes = piece_bytes

    def chunks(self) -> Iterator[bytes]:
        sha256 = hashlib.sha256()
        for start in range(0, len(self._data), self._piece_bytes):
            piece = self._data[start : start + self._piece_bytes]
            sha256.update(piece)
            if start + self._piece_bytes >= len(self._data):
                self.digest = Digest("sha256:" + sha256.hexdigest())
            yield piece
