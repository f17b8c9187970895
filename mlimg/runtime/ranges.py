"""Large files over several connections at once, hashed while they arrive, in bounded memory.

Each connection asks for a range, writes what comes to its place (`part_file`), and asks for the next. A few threads
hash the files in order behind them, so that a file is verified a moment after its last byte. It begins with two
connections; they are doubled as long as that brings more, and while the hash does not lag behind.
"""

import contextlib
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from mlimg.runtime.descriptor import OnBytes
from mlimg.runtime.errors import IntegrityError, RemoteTemporaryError, Stopped
from mlimg.runtime.memory import memory_limit_bytes
from mlimg.runtime.origin import RangesIgnoredError, RemoteFile
from mlimg.runtime.part_file import PartFile

Job = Callable[[OnBytes], None]
"""Something else to be done by a connection, such as a bundle; begun anew after a RemoteTemporaryError."""

CONNECTIONS: Final = 8
RANGE_BYTES: Final = 16 * 1024 * 1024
_FIRST_CONNECTIONS: Final = 2
_FILES_AT_ONCE: Final = 4
_OPEN_FILES: Final = 12  # those that arrive, and those that are here and not hashed yet
_SYNC_EARLY_BYTES: Final = 64 * 1024 * 1024  # a file of that size takes its time to become durable
_HASH_LAG_BYTES: Final = 32 * 1024 * 1024  # with so much to hash, more connections would not help
_GROW_SECONDS: Final = 0.4  # how long a number of connections is watched before there are more
_GROW_RATIO: Final = 1.15  # what more of them must have brought
_GROW_AGAIN_SECONDS: Final = 5.0  # when they have not, it may have been chance
_MEMORY_EACH_BYTES: Final = 32 * 1024 * 1024  # of the container's limit, for each connection
_LONGEST_PAUSE_SECONDS: Final = 15.0
# A connection that is so much slower than the others, for so long, is given up; the next may take another way.
_SLOW_RATIO: Final = 8
_SLOW_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_LEAVE_SECONDS: Final = 1.0  # for threads to end by themselves when one has failed


@dataclass(frozen=True, slots=True)
class Limits:
    """How a transfer behaves: how many connections, and how long it waits for a network that gives nothing."""

    connections: int = CONNECTIONS
    patience_seconds: float = 300
    backoff_seconds: float = 0.5

    @staticmethod
    def connections_for(memory_bytes: int | None) -> int:
        """As many connections as a container of that memory should have."""
        return CONNECTIONS if memory_bytes is None else max(1, min(CONNECTIONS, memory_bytes // _MEMORY_EACH_BYTES))


@dataclass(slots=True, eq=False)
class _Download:
    """A file and what of it nobody has asked for yet."""

    remote: RemoteFile
    part: PartFile
    pending: deque[tuple[int, int]]
    under_way: int = 0
    in_one_stream: bool = False  # its place has no ranges

    def take(self) -> tuple[int, int] | None:
        """The next range, None when there is none now."""
        if not self.pending or (self.in_one_stream and self.under_way):
            return None
        offset, size = self.pending.popleft()
        taken = size if self.in_one_stream else min(size, RANGE_BYTES)
        if taken < size:
            self.pending.appendleft((offset + taken, size - taken))
        self.under_way += 1
        return offset, taken


@dataclass(slots=True)
class _Connection:
    """What one thread is doing: its rate is compared with that of the others."""

    began: float = field(default_factory=time.monotonic)
    received_bytes: int = 0
    rate: float = 0.0
    replaced: float = float("-inf")  # when it was last given up for being slow


class _TooSlowError(Exception):
    """A connection is far behind the others."""


class Transfer:
    """One run of a fetch: parts and jobs, done when every byte is here and has its digest."""

    def __init__(
        self,
        files: Sequence[tuple[RemoteFile, PartFile]],
        jobs: Sequence[Job],
        *,
        limits: Limits,
        on_bytes: OnBytes,
        stop: threading.Event,
    ) -> None:
        self._waiting = deque(_Download(remote, part, deque(part.missing())) for remote, part in files)
        self._unhashed = deque(self._waiting)
        self._open: list[_Download] = []
        self._files_left = len(files)
        self._jobs = deque(jobs)
        self._jobs_left = len(jobs)
        self._limits = limits
        self._on_bytes = on_bytes
        self._stop = stop
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._connections: list[_Connection] = []
        self._received_bytes = 0
        # When connections were added last, what had come by then, and how fast it came before.
        self._grown, self._grown_at_bytes, self._grown_at_rate = 0.0, 0, 0.0
        self.last_byte = time.monotonic()

    def run(self) -> None:
        """Do it all. Raises the first error that is not temporary, or that is still there when patience ends; Stopped.

        Threads that hang in the network then are left behind: they write nothing any more.
        """
        hashers = min(self._files_left, _FILES_AT_ONCE)
        threads = [self._start(self._hash, f"hash-{number}") for number in range(hashers)]
        while not self._is_done():
            if self._ended():
                break
            for _ in range(self._wanted_connections()):
                connection = _Connection()
                self._connections.append(connection)
                threads.append(self._start(partial(self._work, connection), f"fetch-{len(self._connections)}"))
            time.sleep(_POLL_SECONDS)
        deadline = time.monotonic() + _LEAVE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()) if self._ended() else None)
        if self._failures:
            raise self._failures[0]
        if self._stop.is_set():
            raise Stopped

    def saw_bytes(self, size_bytes: int) -> None:
        """Bytes came from the network: patience begins anew."""
        self.last_byte = time.monotonic()
        with self._lock:
            self._received_bytes += size_bytes
        self._on_bytes(size_bytes)

    def _start(self, work: Callable[[], None], name: str) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised again by `run`
                self._failures.append(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _ended(self) -> bool:
        return bool(self._failures) or self._stop.is_set()

    def _is_done(self) -> bool:
        with self._lock:
            return not self._files_left and not self._jobs_left

    def _wanted_connections(self) -> int:
        """How many connections there should be more."""
        with self._lock:
            waiting = self._jobs or self._waiting or any(download.pending for download in self._open)
            behind = sum(download.part.behind_bytes() for download in self._open)
        now, most = time.monotonic(), self._limits.connections - len(self._connections)
        if not waiting or not most:
            return 0
        if self._connections:
            seconds = now - self._grown
            if seconds < _GROW_SECONDS:
                return 0
            rate = (self._received_bytes - self._grown_at_bytes) / seconds
            no_use = rate < self._grown_at_rate * _GROW_RATIO and seconds < _GROW_AGAIN_SECONDS
            if no_use or behind > _HASH_LAG_BYTES:
                return 0
            self._grown_at_rate = rate
        self._grown, self._grown_at_bytes = now, self._received_bytes
        return min(most, len(self._connections) or _FIRST_CONNECTIONS)

    # Connections

    def _work(self, connection: _Connection) -> None:
        """Take one thing after the other until nothing is left or the transfer has ended."""
        first_pause = self._limits.backoff_seconds
        pause = first_pause
        while not self._is_done() and not self._ended():
            task = self._next(connection)
            if task is None:
                self._stop.wait(_POLL_SECONDS)
                continue
            try:
                task()
                pause = first_pause
            except RemoteTemporaryError:
                if time.monotonic() - self.last_byte > self._limits.patience_seconds:
                    raise
                self._pause(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._ended() and not self._is_done():
            self._stop.wait(min(_POLL_SECONDS, seconds))

    def _next(self, connection: _Connection) -> Callable[[], None] | None:
        with self._lock:
            if self._jobs:  # first: a bundle is one stream however many connections there are
                return partial(self._do, self._jobs.popleft())
            while self._waiting and len(self._open) < _OPEN_FILES:
                download = self._waiting.popleft()
                if download.pending:  # else all of it is here, or it has no bytes
                    self._open.append(download)
            askable = [download for download in self._open if download.pending][:_FILES_AT_ONCE]
            for download in sorted(askable, key=lambda download: download.under_way):
                if taken := download.take():
                    return partial(self._read, connection, download, *taken)
        return None

    def _do(self, job: Job) -> None:
        try:
            job(self.saw_bytes)
        except RemoteTemporaryError:
            with self._lock:
                self._jobs.append(job)
            raise
        with self._lock:
            self._jobs_left -= 1

    def _read(self, connection: _Connection, download: _Download, offset: int, size_bytes: int) -> None:
        """Bring one range here. What is missing of it in the end goes back to the others."""
        position, end = offset, offset + size_bytes
        connection.began, connection.received_bytes = time.monotonic(), 0
        in_one_stream = False
        try:
            with _closed(download.remote.read(offset, size_bytes)) as pieces:
                for piece in pieces:
                    if self._ended():
                        return
                    if len(piece) > end - position:
                        raise IntegrityError(f"`{download.remote.file.path}` is longer than its manifest says")
                    self._write(download, position, piece)
                    position += len(piece)
                    self._check_pace(connection, len(piece), end - position)
            if position < end:
                raise RemoteTemporaryError(f"`{download.remote.file.path}` came cut short")
        except RangesIgnoredError:
            in_one_stream = True
        except _TooSlowError:
            connection.replaced = time.monotonic()
        finally:
            with self._lock:
                download.under_way -= 1
                if in_one_stream or download.in_one_stream:
                    # Nothing can be asked for but the whole. What is here already is not written a second time.
                    download.in_one_stream = True
                    download.pending = deque(
                        [] if download.part.is_complete() else [(0, download.remote.file.size_bytes)]
                    )
                elif position < end:
                    download.pending.appendleft((position, end - position))
        if download.remote.file.size_bytes >= _SYNC_EARLY_BYTES and download.part.is_complete():
            download.part.sync()  # while its end is hashed

    def _write(self, download: _Download, offset: int, piece: bytes) -> None:
        self.saw_bytes(len(piece))
        if not download.in_one_stream:
            download.part.write(offset, piece)
            return
        for start, size in download.part.missing():  # never twice: it may have been hashed meanwhile
            begin, stop = max(start, offset), min(start + size, offset + len(piece))
            if begin < stop:
                download.part.write(begin, piece[begin - offset : stop - offset])

    def _check_pace(self, connection: _Connection, size_bytes: int, left_bytes: int) -> None:
        """Raise _TooSlowError on a connection that lags far behind the others."""
        now = time.monotonic()
        seconds = now - connection.began
        connection.received_bytes += size_bytes
        if seconds < 0.1:
            return
        connection.rate = connection.received_bytes / seconds
        if not left_bytes or seconds < _SLOW_SECONDS or now - connection.replaced < 4 * _SLOW_SECONDS:
            return
        others = [other.rate for other in self._connections if other is not connection and other.rate]
        if len(others) >= 2 and connection.rate * _SLOW_RATIO < statistics.median(others):
            raise _TooSlowError

    # Hashing

    def _hash(self) -> None:
        while True:
            with self._lock:
                if not self._unhashed:
                    return
                download = self._unhashed.popleft()
            try:
                found = download.part.digest(self._ended)
            except Stopped:
                return
            if found == download.remote.file.sha256:
                download.part.finish(executable=self._is_executable(download.remote))
                with self._lock:
                    self._files_left -= 1
                    if download in self._open:
                        self._open.remove(download)
            elif download.part.resumed:
                # What an earlier try left was not what its journal says: a machine that lost power, or somebody's hand.
                with self._lock:
                    download.part.restart()
                    download.pending = deque(download.part.missing())
                    self._unhashed.appendleft(download)
                    if download not in self._open and download not in self._waiting:
                        self._open.append(download)
            else:
                download.part.discard()
                raise IntegrityError(f"`{download.remote.file.path}` arrived with other content than its manifest says")

    def _is_executable(self, remote: RemoteFile) -> bool:
        """Whether a file is a program, which its place may have to be asked."""
        while True:
            try:
                return remote.executable
            except RemoteTemporaryError:
                if self._ended() or time.monotonic() - self.last_byte > self._limits.patience_seconds:
                    raise
                self._pause(self._limits.backoff_seconds)


@contextlib.contextmanager
def _closed(pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Let go of a connection at once when its answer is not read to the end."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, Generator):
            pieces.close()


def usual_limits(patience_seconds: float, backoff_seconds: float) -> Limits:
    """The limits for this process: fewer connections where memory is short."""
    return Limits(Limits.connections_for(memory_limit_bytes()), patience_seconds, backoff_seconds)
