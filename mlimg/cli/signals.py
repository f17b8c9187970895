"""How the process is stopped: SIGINT, SIGTERM and SIGHUP unwind it, and it is gone within two seconds."""

import os
import signal
import threading
from types import FrameType
from typing import Final

STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEADLINE_SECONDS: Final = 1.8
_LEAVE_SECONDS: Final = 0.1


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end. Raised in the main thread, so that every `finally` runs."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """What a shell reports for a process that this signal ended."""
        return 128 + self.number


class _Stopping:
    """The state of the one stop a process can have."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.deadline_seconds = DEADLINE_SECONDS

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.first is not None:
            if number == signal.SIGINT:
                os._exit(128 + number)  # a person who presses twice wants out; the next run sweeps what is left
            return
        self.first = number
        # Cleaning up may hang on a dead engine or a slow disk. What is left then is swept by the next run.
        for seconds, last in ((self.deadline_seconds, _leave), (self.deadline_seconds + _LEAVE_SECONDS, os._exit)):
            watchdog = threading.Timer(seconds, last, (128 + number,))
            watchdog.daemon = True
            watchdog.start()
        raise Stopped(number)


def _leave(status: int) -> None:
    """End the process now, without unwinding, but not without what takes no time."""
    from mlimg.temporary import remove_all

    remove_all()
    os._exit(status)


_stopping = _Stopping()


def end_if_stopped(status: int) -> None:
    """End a process that was stopped, now that it is unwound.

    The interpreter takes our handlers away on its way out, and another signal would end it with another status.
    """
    if _stopping.first is not None:
        _leave(status)


def install() -> None:
    """Turn the stopping signals into `Stopped`. One that the parent ignores (nohup) stays ignored."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stopping)


def allow_cleanup(seconds: float) -> None:
    """Give cleaning up this long: a container that is stopped may first finish its requests."""
    _stopping.deadline_seconds = seconds
