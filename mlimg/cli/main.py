"""The console script: everything around a command, from signals to the exit status.

It imports nothing heavy before the signals are in place, so that Ctrl-C is answered from the first moment.
"""

import contextlib
import gc
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mlimg.cli import signals


def main() -> NoReturn:
    """Run the command line of this process."""
    signals.install()
    gc.set_threshold(100_000)  # imports make what stays: looking for garbage among it is a tenth of the start
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for some reads all installed packages
    _fill_closed_descriptors()
    _forget_current_folder()
    # What is published must be readable to the user that a server runs as; what is private says so (0700, 0600).
    os.umask(0o022)
    status = 70
    try:
        status = run(sys.argv[1:])
    except signals.Stopped as stop:  # between commands, or while an error was being printed
        status = stop.status
    finally:
        _flush(status)
        gc.freeze()  # nor need the interpreter look through all of it once more on its way out
    signals.end_if_stopped(status)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; every failure has been reported."""
    from mlimg.cli.terminal import Terminal

    terminal = Terminal()
    try:
        return _invoke(arguments, terminal)
    except signals.Stopped as stop:
        terminal.say(f"stopped by {stop}")
        return stop.status
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 141
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        # Parsing may have failed before it came to the flags that say how to report it.
        terminal.json = terminal.json or "--json" in arguments
        terminal.debug = terminal.debug or "--debug" in arguments
        return terminal.report_failure(error)


def _invoke(arguments: Sequence[str], terminal: object) -> int:
    import typer

    from mlimg.cli.app import application

    command = typer.main.get_command(application(arguments))
    try:
        # Not `command.main`: that one takes every broken pipe, an engine's too, for a closed stdout.
        with command.make_context("mlimg", list(arguments) or ["--help"], obj=terminal) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _fill_closed_descriptors() -> None:
    """Keep files that are opened later from becoming stdin, stdout or stderr where those came closed."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            # stdout is opened for reading: writing to it fails, as it should where there is none.
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _forget_current_folder() -> None:
    """An empty entry of PYTHONPATH means the current folder: a `yaml.py` that lies there must not be imported."""
    with contextlib.suppress(OSError):
        here = Path.cwd()
        if not Path(__file__).is_relative_to(here):
            sys.path[:] = [entry for entry in sys.path if entry and Path(entry) != here]


def _flush(status: int) -> None:
    """Empty the buffers now: a failure at interpreter exit would change the status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            if status == 0 and stream is sys.stdout:
                os._exit(141 if _reader_is_gone() else 20)
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
