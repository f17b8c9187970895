"""Process 1 of a container: forwards signals to the one child that matters and reaps every orphan.

The kernel gives process 1 no default signal actions and hands it every orphaned process. A server that
runs as process 1 itself could only reap orphans by waiting for *any* child, and would so steal the exit
statuses of the subprocesses its own code started. So the server is a child, and this waits for all.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

_SI_KERNEL: Final = 128  # https://man7.org/linux/man-pages/man2/sigaction.2.html
FORWARDED: Final = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
}


def hold_signals() -> None:
    """Let signals wait until somebody heeds them: what reaches a process 1 without handlers is gone for good."""
    if os.getpid() == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)


def split_off() -> None:
    """Return in a child process; this process supervises it and ends with its status."""
    watched = FORWARDED | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        return
    os._exit(_supervise(child, watched))


def run(command: Sequence[str]) -> NoReturn:
    """Supervise `command` as a child process and end with its status: 127 if there is no such command."""
    split_off()
    replace_process(command, os.environ)


def replace_process(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become `command`, found on the PATH; the process ends with 127 or 126 when that cannot be."""
    # Python ignores these two, and what is ignored stays ignored: a server would not die of a closed pipe.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environ)  # noqa: S606 (no shell is the point)
    except OSError as error:
        print(f"error: cannot start {command[0]!r}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _supervise(child: int, watched: set[signal.Signals]) -> int:
    while True:
        info = signal.sigwaitinfo(watched)
        if info.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status
        elif info.si_code != _SI_KERNEL:  # the terminal's Ctrl-C reached the child already
            os.kill(child, info.si_signo)


def _reap(child: int) -> int | None:
    """Collect all that has ended; the status of `child` if it is among them."""
    status = None
    while True:
        try:
            pid, waited = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            code = os.waitstatus_to_exitcode(waited)
            status = code if code >= 0 else 128 - code


if __name__ == "__main__":
    run(sys.argv[1:])
