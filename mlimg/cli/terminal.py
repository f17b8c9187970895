"""What a command prints: results on stdout, all talk on stderr, failures with their status."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlimg.cli import signals
from mlimg.report import Reporter
from mlimg.runtime.errors import LimitError, LocalIOError, MlimgError, UsageError, printable
from mlimg.spec.problems import InvalidSpecError

_PLACES_TOLD: Final = 4


@dataclass(slots=True)
class Terminal:
    """The streams of this process, and the three flags that say how to use them."""

    json: bool = False
    quiet: bool = False
    debug: bool = False

    def reporter(self) -> Reporter:
        """What the stages speak to: live where a person watches, lines elsewhere."""
        if not self.quiet and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            from mlimg.cli.live import LiveReporter

            return LiveReporter()
        from mlimg.cli.plain import PlainReporter

        return PlainReporter(self.say, quiet=self.quiet)

    def say(self, text: str) -> None:
        """Write a line to stderr. A stderr that is gone does not stop the work."""
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def note(self, text: str) -> None:
        """Write a line to stderr unless --quiet."""
        if not self.quiet:
            self.say(text)

    def results(self, lines: Mapping[str, str], document: Mapping[str, Any]) -> None:
        """Write what was made: ``key=value`` lines as `$GITHUB_OUTPUT` takes them, or the whole as JSON."""
        if self.json:
            self.document(document)
        else:
            self.text("".join(f"{key}={printable(value)}\n" for key, value in lines.items()))

    def document(self, value: object) -> None:
        """Write one JSON document to stdout."""
        self.text(json.dumps(value, indent=1) + "\n")

    def text(self, text: str) -> None:
        """Write to stdout, all of it before a signal is looked at: a reader never gets half a document.

        Raises BrokenPipeError when the reader is gone, LocalIOError when stdout cannot be written.
        """
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        sys.stdout.flush()
        with _signals_wait():
            try:
                descriptor = sys.stdout.fileno()
                while data:
                    data = data[os.write(descriptor, data) :]
            except BrokenPipeError:
                raise
            except OSError as error:
                raise LocalIOError(
                    f"standard output: {error.strerror}", hint="the work itself is done; only its report is lost"
                ) from error

    def report_failure(self, error: BaseException) -> int:
        """Report `error` as whoever reads this wants it, and return the exit status."""
        failure = as_failure(error)
        if self.debug:
            import traceback

            self.say("".join(traceback.format_exception(error)).rstrip())
        for line in failure_lines(failure):
            self.say(line)
        if self.json and not isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError, LocalIOError):
                self.document({"error": failure_json(failure)})
        return failure.status


def as_failure(error: BaseException) -> MlimgError:
    """Every exception as one of ours; what nobody expected is a bug with an id that repeats for the same bug."""
    if isinstance(error, MlimgError):
        return error
    if hasattr(error, "format_message"):  # every usage error of typer has it, whichever Click lies below
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "mlimg"
        return UsageError(error.format_message(), hint=f"`{command} --help` shows what it takes")
    if isinstance(error, MemoryError):
        return LimitError("out of memory")
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, ConnectionError):
        return LocalIOError(f"{printable(os.fsdecode(error.filename))}: {error.strerror}")
    import hashlib
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    trail = "\n".join(f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}" for frame in frames)
    number = hashlib.sha256(f"{type(error).__name__}\n{trail}".encode()).hexdigest()[:8]
    # Some bugs show once in a thousand runs: the places that are ours are told at once, --debug or not.
    package = Path(__file__).parents[1]
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(package)][-_PLACES_TOLD:]
    places = (f"{Path(frame.filename).relative_to(package)}:{frame.lineno} in {frame.name}" for frame in ours)
    # Not the exception's own text: it may hold what must not be printed. --debug shows it.
    return MlimgError(
        f"mlimg has a bug: unexpected {type(error).__name__} (id {number})",
        hint="run the same command with --debug and report what it prints, with the id",
        log=[f"at {place}" for place in places],
    )


def failure_lines(error: MlimgError) -> Iterator[str]:
    """A failure as a person reads it."""
    yield f"error: {error.message}"
    yield from (f"  {printable(line)}" for line in error.log)
    if error.published:
        yield f"published before it: {', '.join(error.published)}"
    if error.hint:
        if error.log:
            yield ""
        yield f"hint: {error.hint}"


def failure_json(error: MlimgError) -> dict[str, Any]:
    """The same facts as keys."""
    name, separator, fact = error.message.partition(": ")
    value: dict[str, Any] = {
        "class": error.kind,
        "status": error.status,
        "object": name if separator else None,
        "fact": fact if separator else error.message,
        "published": list(error.published),
        "retry": error.retry,
        "hint": error.hint or None,
    }
    if isinstance(error, InvalidSpecError):
        value["problems"] = [problem.to_json() for problem in error.problems]
    if error.log:
        value["log"] = list(error.log)
    return value


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
