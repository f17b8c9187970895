"""What was hashed before: an unchanged model costs nothing the next time.

`.mlimg/hashes.json` beside the spec keeps a digest under a key that only the same bytes can have: a file's fingerprint,
or all that goes into a layer. It saves work and proves nothing: whoever sends bytes hashes what is sent.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mlimg.record import make_folder
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ModelError

CACHE_NAME: Final = "hashes.json"
MAX_ENTRIES: Final = 150_000  # the largest model has 50 000 files; an entry has some 100 bytes
_MAX_BYTES: Final = 32 * 1024**2
_SCHEMA_VERSION: Final = 1


class HashCache:
    """Digests by key, in memory, and in a file where there is a folder for it.

    A file that is damaged, foreign or too large counts as empty. Several processes may save at once: each puts what it
    learned on top of what is there, the file is replaced in one step, and what is lost is only hashed again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[str, str] | None = None
        self._learned: dict[str, str] = {}

    def find(self, key: str | None) -> Digest | None:
        """What was learned under a key. None is the key of what nothing sure is known of."""
        if key is None:
            return None
        if self._known is None:
            self._known = self._read()
        short = _short(key)
        text = self._learned.get(short) or self._known.get(short)
        try:
            return Digest.parse(f"sha256:{text}") if text else None
        except (ValueError, TypeError):
            return None

    def learn(self, key: str | None, digest: Digest) -> None:
        """Keep a digest that was computed from the bytes."""
        if key is not None and self.find(key) != digest:
            self._learned[_short(key)] = digest.hex

    def save(self) -> None:
        """Write what was learned. A cache that cannot be written is no failure."""
        if self._folder is None or not self._learned:
            return
        merged = {key: text for key, text in self._read().items() if key not in self._learned} | self._learned
        newest = dict(list(merged.items())[-MAX_ENTRIES:])
        scratch = self._folder / f".{CACHE_NAME}.{secrets.token_hex(4)}.{os.getpid()}"
        with suppress(OSError):
            make_folder(self._folder)
            try:
                text = json.dumps({"schemaVersion": _SCHEMA_VERSION, "sha256": newest}, indent=0)
                scratch.write_text(f"{text}\n", encoding="utf-8")
                scratch.replace(self._folder / CACHE_NAME)
            finally:
                scratch.unlink(missing_ok=True)
            self._known, self._learned = newest, {}

    def forget(self) -> None:
        """Lose everything: bytes were found to be others than what is kept here says."""
        self._known, self._learned = {}, {}
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / CACHE_NAME).unlink(missing_ok=True)

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Lose everything when a model is found to be another: if its files did not change, what is kept was wrong."""
        try:
            yield
        except ModelError:
            self.forget()
            raise

    def _read(self) -> dict[str, str]:
        if self._folder is None:
            return {}
        try:
            with (self._folder / CACHE_NAME).open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            value = json.loads(data) if len(data) <= _MAX_BYTES else None
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(value, dict) or value.get("schemaVersion") != _SCHEMA_VERSION:
            return {}
        entries = value.get("sha256")
        return entries if isinstance(entries, dict) else {}


def _short(key: str) -> str:
    """Keys of one length, that tell nothing of paths and addresses."""
    return Digest.of(key.encode()).hex[:32]
