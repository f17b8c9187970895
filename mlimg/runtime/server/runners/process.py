"""A worker process as the server sees it: started, given a model to load, asked, and ended."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from mlimg.runtime.errors import LimitError, MlimgError, ModelError
from mlimg.runtime.server import runners
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.runners import wire
from mlimg.runtime.server.runners.page import Page, make_page
from mlimg.runtime.server.runners.worker import Answer, Numbered, Order, Step
from mlimg.runtime.server.settings import usable_cpus

# What OpenMP, OpenBLAS, MKL and numexpr read: as many threads as processors in each process would be far too many.
_THREADS: Final = "OMP_NUM_THREADS"
# What glibc keeps of memory that was freed, in bytes. By itself it gives a body's back to the kernel, and each request
# has the pages of its own made anew, which costs more than to copy the body.
# https://man7.org/linux/man-pages/man3/mallopt.3.html
_MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20)}


class Worker:
    """One process. A thread starts it and lets it load; then the event loop alone asks, and never waits for it."""

    def __init__(self, environ: Mapping[str, str], siblings: int) -> None:
        threads = environ.get(_THREADS) or str(max(1, usable_cpus() // siblings))
        self.link, theirs = wire.pair()
        page = make_page()
        try:
            with theirs:
                self._process = subprocess.Popen(  # a fresh interpreter: this process has threads, and must not fork
                    [sys.executable, "-m", runners.__name__, str(theirs.fileno()), str(page)],
                    env={**_MALLOC, **environ, _THREADS: threads},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), page],
                    process_group=0,  # a terminal's Ctrl-C is the server's alone
                )
        finally:
            self.page = Page(page)
        self.pid = self._process.pid
        self.too_slow = False

    def imported(self) -> None:
        """Wait until the handler is imported. Raises TemplateError, or as `load`."""
        self._step()

    def order(self, order: Order) -> None:
        """Let the process load a model."""
        with suppress(OSError):  # it died: `load` finds out
            wire.send(self.link, order)

    def load(self, warming: Callable[[], None]) -> ModelMetadata:
        """Wait until the model that was ordered is loaded and warmed up. Raises ModelError, LimitError."""
        step = self._step()
        if step is Step.WARMING:
            warming()
            step = self._step()
        assert isinstance(step, ModelMetadata)  # noqa: S101 (`worker.work` sends nothing else)
        self.link.setblocking(False)
        return step

    def _step(self) -> object:
        try:
            step: object = wire.receive(self.link)
        except (EOFError, ConnectionError):
            raise self.death(self._process.wait()) from None
        if isinstance(step, Exception):
            raise step
        return step

    def ask(self, jobs: Sequence[Numbered]) -> None:
        """Send numbered calls. Raises BlockingIOError when the worker has to read others first, OSError."""
        wire.send(self.link, jobs)

    def hear(self) -> Sequence[Answer]:
        """Answers that are there. Raises BlockingIOError when none is, EOFError when the worker is gone, OSError."""
        answers: Sequence[Answer] = wire.receive(self.link)
        return answers

    def wait(self) -> int:
        """Wait for the end of the process; its status, or minus the signal that killed it."""
        status = self._process.wait()
        self.hang_up()  # a process that the handler started may still hold the other end
        return status

    def hang_up(self) -> None:
        """Let the process end by itself."""
        with suppress(OSError):  # it is closed already
            self.link.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Let go of the socket, which nobody uses any more."""
        self.link.close()

    def discard(self) -> None:
        """End a process that never came to work."""
        self.kill()
        self._process.wait()
        self.close()

    def death(self, status: int) -> MlimgError:
        """Why there is nothing more to be had of the process, which ended with `status`."""
        if status == -signal.SIGKILL:
            return LimitError(
                "a worker process was killed: out of memory?", hint="raise the memory limit, or lower MLIMG_WORKERS"
            )
        how = f"was killed: {signal.strsignal(-status)}" if status < 0 else f"ended with status {status}"
        return ModelError(f"a worker process {how}", hint="the log above may tell more")
