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
        self.hashed_bytes = 0
        self._journal_path = self.path.with_name(self.path.name + _JOURNAL)
        self._changed = threading.Condition()
        self._opened: tuple[_Open, _Open] | None = None  # the file and its journal, while somebody works on them
        with _errors(self.path):
            self._blocks = self._read_journal(-(-file.size_bytes // BLOCK_BYTES))
        self.resumed = any(self._blocks)

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
            data, journal = self._open()
            view, position = memoryview(piece), offset
            while view:
                written = os.pwrite(data.number, view, position)
                view, position = view[written:], position + written
            last = self.file.size_bytes == position
            for number in range(offset // BLOCK_BYTES, position // BLOCK_BYTES + (last and position % BLOCK_BYTES > 0)):
                os.write(journal.number, _LINE.format(number).encode())
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
        sha256, buffer = hashlib.sha256(), memoryview(bytearray(min(READ_SIZE_BYTES, self.file.size_bytes)))
        self.hashed_bytes = 0
        while self.hashed_bytes < self.file.size_bytes:
            self._wait_for(self.hashed_bytes // BLOCK_BYTES, stop)
            block_end = min((self.hashed_bytes // BLOCK_BYTES + 1) * BLOCK_BYTES, self.file.size_bytes)
            wanted = min(READ_SIZE_BYTES, block_end - self.hashed_bytes)
            with _errors(self.path):
                size = os.preadv(self._open()[0].number, [buffer[:wanted]], self.hashed_bytes)
            if not size:
                raise LocalIOError(f"{self.path} was cut short by somebody else")
            sha256.update(buffer[:size])
            self.hashed_bytes += size
        return Digest("sha256:" + sha256.hexdigest())

    def sync(self) -> None:
        """Make what is here last."""
        with _errors(self.path):
            os.fsync(self._open()[0].number)

    def finish(self, *, executable: bool) -> None:
        """Give the file its mode, make it last, and let go of it."""
        with _errors(self.path):
            data = self._open()[0]
            os.fchmod(data.number, 0o755 if executable else 0o644)
            os.fsync(data.number)
        self._opened = None

    def restart(self) -> None:
        """Forget every byte. Only while nobody writes."""
        with _errors(self.path), self._changed:
            self._opened = None
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

    def _open(self) -> tuple["_Open", "_Open"]:
        """The file and its journal: begun anew unless there is something to be gone on with. Raises OSError."""
        with self._changed:
            if self._opened is None:
                data = _Open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
                if not any(self._blocks):
                    # An empty journal first: the bytes are worth nothing without it.
                    self._journal_path.write_text(self._title(), encoding="ascii")
                    os.ftruncate(data.number, 0)
                    os.ftruncate(data.number, self.file.size_bytes)
                self._opened = (data, _Open(self._journal_path, os.O_WRONLY | os.O_APPEND))
            return self._opened

    def _read_journal(self, count: int) -> list[bool]:
        """Which blocks an earlier try left; none where journal or file are not as this program writes them."""
        blocks = [False] * count
        try:
            text = self._journal_path.read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return blocks
        title, lines = text[: len(self._title())], text[len(self._title()) :]
        if title != self._title() or not self.path.exists() or self.path.stat().st_size != self.file.size_bytes:
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
