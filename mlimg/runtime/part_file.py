"""A file on its way to this machine: its bytes so far, and a journal of which of them are here.

The bytes lie in ``<sha256>``, as long as the file from the beginning; ``<sha256>.blocks`` names the blocks that are
complete, one in each line, each written down after its bytes were. So a process that is killed loses what it had of
the blocks under way and nothing else. A machine that loses power may lose more: that the file has its digest in the
end is what counts, and `resumed` says whether an old journal is to blame when it has not.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import LocalIOError, Stopped
from mlimg.runtime.manifest import ModelFile

BLOCK_BYTES: Final = 4 * 1024 * 1024
_JOURNAL: Final = ".blocks"
_LINE: Final = "{:08x}\n"
_POLL_SECONDS: Final = 0.1


class PartFile:
    """One such file. Several threads write to it, each to bytes of its own; one hashes behind them.

    Whatever raises OSError inside is a LocalIOError outside.
    """

    def __init__(self, folder: Path, file: ModelFile) -> None:
        self.file = file
        self.path = folder / file.sha256.hex
        self.resumed = False
        self.hashed_bytes = 0
        self._journal_path = self.path.with_name(self.path.name + _JOURNAL)
        self._changed = threading.Condition()
        count = -(-file.size_bytes // BLOCK_BYTES)
        with _errors(self.path):
            self._data = _Open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            self._blocks = self._read_journal(count)
            self.resumed = any(self._blocks)
            if not self.resumed:
                self._begin()
            self._journal = _Open(self._journal_path, os.O_WRONLY | os.O_APPEND)

    def missing(self) -> list[tuple[int, int]]:
        """Offset and length of each run of bytes that is not here, in order."""
        runs: list[tuple[int, int]] = []
        for number, done in enumerate(self._blocks):
            start = number * BLOCK_BYTES
            size = min(BLOCK_BYTES, self.file.size_bytes - start)
            if done:
                continue
            if runs and sum(runs[-1]) == start:
                runs[-1] = (runs[-1][0], runs[-1][1] + size)
            else:
                runs.append((start, size))
        return runs

    def write(self, offset: int, piece: bytes) -> None:
        """Put bytes where they belong. The bytes before them in their block must have been written already."""
        with _errors(self.path):
            view, position = memoryview(piece), offset
            while view:
                written = os.pwrite(self._data.number, view, position)
                view, position = view[written:], position + written
            last = self.file.size_bytes == position
            for number in range(offset // BLOCK_BYTES, position // BLOCK_BYTES + (last and position % BLOCK_BYTES > 0)):
                os.write(self._journal.number, _LINE.format(number).encode())
                with self._changed:
                    self._blocks[number] = True
                    self._changed.notify_all()

    def is_complete(self) -> bool:
        """Whether every byte is here; not whether they are the right ones."""
        return all(self._blocks)

    def behind_bytes(self) -> int:
        """What is here and not hashed yet, roughly."""
        return max(0, sum(self._blocks) * BLOCK_BYTES - self.hashed_bytes)

    def digest(self, stop: Callable[[], bool]) -> Digest:
        """Hash the file from its beginning, waiting for what is not here yet. Raises Stopped.

        What is hashed comes out of the kernel's memory, where it was put a moment ago.
        """
        sha256, buffer = hashlib.sha256(), memoryview(bytearray(READ_SIZE_BYTES))
        self.hashed_bytes = 0
        while self.hashed_bytes < self.file.size_bytes:
            self._wait_for(self.hashed_bytes // BLOCK_BYTES, stop)
            block_end = min((self.hashed_bytes // BLOCK_BYTES + 1) * BLOCK_BYTES, self.file.size_bytes)
            wanted = min(READ_SIZE_BYTES, block_end - self.hashed_bytes)
            with _errors(self.path):
                size = os.preadv(self._data.number, [buffer[:wanted]], self.hashed_bytes)
            if not size:
                raise LocalIOError(f"{self.path} was cut short by somebody else")
            sha256.update(buffer[:size])
            self.hashed_bytes += size
        return Digest("sha256:" + sha256.hexdigest())

    def sync(self, *, executable: bool = False) -> None:
        """Give the file its mode and make it last."""
        with _errors(self.path):
            os.fchmod(self._data.number, 0o755 if executable else 0o644)
            os.fsync(self._data.number)

    def restart(self) -> None:
        """Forget every byte. Only while nobody writes."""
        with _errors(self.path), self._changed:
            self._begin()
            self._blocks = [False] * len(self._blocks)
            self.resumed, self.hashed_bytes = False, 0

    def discard(self) -> None:
        """Leave nothing for the next try."""
        with _errors(self.path):
            self._journal_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def _wait_for(self, block: int, stop: Callable[[], bool]) -> None:
        with self._changed:
            while True:
                if stop():
                    raise Stopped
                if self._blocks[block]:
                    return
                self._changed.wait(_POLL_SECONDS)

    def _begin(self) -> None:
        """An empty journal first: the bytes are worth nothing without it."""
        self._journal_path.write_text(self._title(), encoding="ascii")
        os.ftruncate(self._data.number, 0)
        os.ftruncate(self._data.number, self.file.size_bytes)

    def _read_journal(self, count: int) -> list[bool]:
        """Which blocks an earlier try left; none where journal or file are not as this program writes them."""
        blocks = [False] * count
        try:
            text = self._journal_path.read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return blocks
        title, lines = text[: len(self._title())], text[len(self._title()) :]
        if title != self._title() or os.fstat(self._data.number).st_size != self.file.size_bytes:
            return blocks
        # A last line that was cut short names a block whose bytes are all here, but nobody relies on that.
        for line in lines.splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                number = int(line, 16) if line.endswith("\n") else count
                if 0 <= number < count and _LINE.format(number) == line:
                    blocks[number] = True
        return blocks

    def _title(self) -> str:
        return f"mlimg blocks 1 {self.file.size_bytes} {BLOCK_BYTES}\n"


class _Open:
    """A descriptor that is closed when nobody has it any more.

    Not sooner: a thread that hangs in the network may still write when the others have given up.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self.number = os.open(path, flags | os.O_CLOEXEC, 0o644)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalIOError(f"cannot write {path}: {error.strerror}") from error
