"""Content addresses."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
READ_SIZE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """Content address of a blob, file or manifest, such as ``sha256:9f86…``."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a digest as registries write it. Raises ValueError for anything but lower-case sha256."""
        if not _SHA256.fullmatch(text):
            raise ValueError(f"expected sha256: and 64 hex digits, got {text!r}")
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Hash bytes that are in memory."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Hash a file without holding it in memory. Raises OSError."""
        with path.open("rb") as file:
            return cls("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())

    @property
    def hex(self) -> str:
        """The 64 hex digits."""
        return self.text.removeprefix("sha256:")

    def __str__(self) -> str:
        return self.text


def canonical_json(value: object) -> bytes:
    """One text for one value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
