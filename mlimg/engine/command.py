"""Other programs, run without surprises: bounded memory, bounded time, nothing left running.

What a program prints is foreign text. It reaches callers line by line, without terminal codes, cut at a
length no honest line has.
"""

import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

from mlimg.engine.lines import Lines, OnLine

TAIL_LINES: Final = 50
_READ_BYTES: Final = 64 * 1024
# From Ctrl-C to the prompt is at most two seconds: these two, then our own clean-up.
_SETTLE_SECONDS: Final = 0.8
_GRACE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended well, and the last lines it printed."""

    tail: tuple[str, ...]


class CommandFailed(Exception):  # noqa: N818 (what happened, as the caller reads it)
    """A program that could not be started, ended badly, or was stopped for taking too long.

    `status` is its exit status, negative for a signal; None when it did not end by itself.
    """

    def __init__(self, program: str, reason: str, *, status: int | None = None, tail: Sequence[str] = ()) -> None:
        super().__init__(f"`{program}` {reason}")
        self.program = program
        self.reason = reason
        self.status = status
        self.tail = tuple(tail)


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | Iterable[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    timeout_seconds: float,
    stall_seconds: float | None = None,
    on_line: OnLine | None = None,
    settled: Callable[[], bool] | None = None,
) -> Completed:
    """Run a program to its end. `stall_seconds` bounds the time in which it neither prints nor reads.

    Before it is stopped, `settled` is asked whether this is a good moment; it can put it off for a second.

    Whatever ends this call early (a time-out, Ctrl-C, an error in `stdin` or `on_line`) ends the program with all
    its children first. Raises CommandFailed, and what `stdin` and `on_line` raise.
    """
    starter = _Starter(argv, stdin is not None, env)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    lines = Lines(lambda line: _note(line, tail, on_line))
    clock = _Clock(timeout_seconds, stall_seconds)
    try:
        process = starter.start()
        _converse(process, _as_chunks(stdin), lines, clock)
        status = process.wait(clock.remaining())
    except _Overdue as error:
        starter.end(lines, settled)
        raise CommandFailed(argv[0], str(error), tail=tail) from None
    except subprocess.TimeoutExpired:
        starter.end()
        raise CommandFailed(argv[0], "closed its output and did not end", tail=tail) from None
    except BaseException:
        starter.end(lines, settled)
        raise
    finally:
        starter.close()
    if status != 0:
        reason = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
        raise CommandFailed(argv[0], reason, status=status, tail=tail)
    return Completed(tuple(tail))


class _Starter:
    """Starts a program from a thread, where no signal is raised.

    In the main thread one could come after the program was started and before anybody knows of it.
    """

    def __init__(self, argv: Sequence[str], with_stdin: bool, env: Mapping[str, str] | None) -> None:
        self._argv, self._with_stdin, self._env = argv, with_stdin, env
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="start-command")

    def start(self) -> subprocess.Popen[bytes]:
        """The running program. Raises CommandFailed."""
        self._thread.start()
        self._thread.join()
        if self._process is None:
            why = self._failure.strerror if self._failure else "unknown"
            raise CommandFailed(self._argv[0], f"cannot be started: {why}") from self._failure
        return self._process

    def end(self, lines: Lines | None = None, settled: Callable[[], bool] | None = None) -> None:
        """End the program, if it was started, and its children."""
        if self._thread.ident is not None:
            self._thread.join()
        if self._process is not None:
            _end(self._process, lines, settled)

    def close(self) -> None:
        """Close the pipes of a program that has ended, and reap it."""
        if self._process is not None:
            with self._process:
                pass

    def _run(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE if self._with_stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=None if self._env is None else dict(self._env),
                bufsize=0,
                process_group=0,  # a group of its own: a terminal's Ctrl-C reaches us alone, and we pass it on
            )
        except OSError as error:
            self._failure = error


class _Overdue(Exception):  # noqa: N818
    """The program took too long; the text says in which way."""


class _Clock:
    """How long a program may still take."""

    def __init__(self, timeout_seconds: float, stall_seconds: float | None) -> None:
        self._timeout_seconds = timeout_seconds
        self._stall_seconds = stall_seconds
        self._started = self._moved = time.monotonic()

    def moved(self) -> None:
        """Note a sign of life."""
        self._moved = time.monotonic()

    def remaining(self) -> float:
        """Seconds to wait for the next sign of life. Raises _Overdue when there are none left."""
        now = time.monotonic()
        whole = self._started + self._timeout_seconds - now
        if whole <= 0:
            raise _Overdue(f"was stopped: not done after {self._timeout_seconds:g} s")
        if self._stall_seconds is None:
            return whole
        stall = self._moved + self._stall_seconds - now
        if stall <= 0:
            raise _Overdue(f"was stopped: silent for {self._stall_seconds:g} s")
        return min(whole, stall)


def _note(line: str, tail: deque[str], on_line: OnLine | None) -> None:
    tail.append(line)
    if on_line:
        on_line(line)


def _as_chunks(stdin: bytes | Iterable[bytes] | None) -> Iterator[bytes]:
    return filter(None, (stdin,) if isinstance(stdin, bytes) else stdin or ())


def _converse(process: subprocess.Popen[bytes], chunks: Iterator[bytes], lines: Lines, clock: _Clock) -> None:
    """Write and read as far as the program takes and gives, until it closes its output."""
    output = process.stdout
    assert output is not None  # noqa: S101 (asked for above; for the type checker)
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        pending = memoryview(b"")
        if process.stdin:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        while True:
            for key, _ in selector.select(clock.remaining()):
                clock.moved()
                if key.fileobj is output:
                    data = os.read(output.fileno(), _READ_BYTES)
                    lines.feed(data, final=not data)
                    if not data:
                        return
                elif process.stdin:
                    pending = pending or memoryview(next(chunks, b""))
                    if not pending:
                        _close_input(selector, process.stdin)
                        continue
                    try:
                        pending = pending[os.write(process.stdin.fileno(), pending) :]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        # It ends without reading on; its status and its words tell more than this does.
                        _close_input(selector, process.stdin)


def _close_input(selector: selectors.BaseSelector, stream: IO[bytes]) -> None:
    selector.unregister(stream)
    with suppress(OSError):
        stream.close()


def _end(
    process: subprocess.Popen[bytes], lines: Lines | None = None, settled: Callable[[], bool] | None = None
) -> None:
    """End the program and its children: by Ctrl-C's own signal, so that builders cancel, then by force."""
    try:
        if lines and settled:
            _settle(process, lines, settled)
        _signal(process, signal.SIGINT)
        if process.stdout:
            process.stdout.close()  # a program that waits to be read never ends
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    finally:  # a second Ctrl-C too
        _signal(process, signal.SIGKILL)
        process.wait()


def _settle(process: subprocess.Popen[bytes], lines: Lines, settled: Callable[[], bool]) -> None:
    """Read on until the program may be stopped, or the time for that is over."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    with selectors.DefaultSelector() as selector:
        if process.stdout and not process.stdout.closed:
            selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and not settled():
            for key, _ in selector.select(_SETTLE_SECONDS / 20):
                data = os.read(key.fd, _READ_BYTES)
                lines.feed(data)
                if not data:
                    return


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
