"""Workers that are threads of the server: they share its memory, its processor locks and its fate.

The event loop and a model of small predictions take the interpreter's lock from each other with every call into the
kernel, which costs more than the predictions. So the loop stands still for those that it hands over, for a moment.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Final

from mlimg.runtime.errors import LimitError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.exchange import Call, Outcome, answer
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.memory import settle
from mlimg.runtime.server.model import LoadedModel, load_model
from mlimg.runtime.server.runners import Done, More, Work

_SMALL_SECONDS: Final = 0.001  # what a prediction takes, with its request read and its answer written
_STILL_SECONDS: Final = 0.005  # of the event loop at once, at most
_WEIGHT: Final = 1 / 16  # of the last prediction in the mean

_Job = tuple[LoadedModel, Sequence[Call], Done, More, asyncio.AbstractEventLoop]


class Threads:
    """So many threads, which all models of a server share."""

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        # What was answered, and whether its thread has nothing to do now.
        self._finished: deque[tuple[Done, Sequence[Outcome], bool]] = deque()
        self._told = False  # whether the loop knows that something is finished
        self._seconds = 0.0  # what one answer took of late
        self._handed_over: list[_Job] = []  # at the end of the loop's turn
        self._still = False  # whether the loop waits for `_go_on`
        self._go_on = threading.Semaphore(0)
        self._started = False

    @property
    def free(self) -> bool:
        """Whether a thread has nothing to do. One takes all small predictions of a turn: two fight for the lock."""
        return self._free > 0 and not self._handed_over

    def begin(self) -> None:
        """Start them, once. Raises LimitError: a server of fewer would count on places that nobody works at."""
        if self._started:
            return
        try:
            for number in range(self._count):
                # Daemons: a prediction that never ends cannot keep the process.
                threading.Thread(target=self._work, name=f"predict-{number}", daemon=True).start()
        except RuntimeError as error:
            raise LimitError(
                f"{self._count} threads cannot be started", hint="raise the limit of processes, or lower MLIMG_WORKERS"
            ) from error
        self._started = True

    def start(self, model: LoadedModel, calls: Sequence[Call], done: Done, more: More) -> None:
        """Let a free thread answer."""
        self._free -= 1
        loop = asyncio.get_running_loop()
        job = (model, calls, done, more, loop)
        if self._seconds < _SMALL_SECONDS:
            self._handed_over.append(job)
            loop.call_soon(self._stand_still)
        else:
            self._jobs.put(job)

    def _stand_still(self) -> None:
        """Hand over, and wait until all is answered that waits, or for a moment."""
        while self._go_on.acquire(blocking=False):  # one that came too late the last time
            pass
        self._still = True
        for job in self._handed_over:
            self._jobs.put(job)
        self._handed_over.clear()
        if not self._told:  # looked at after `_still` was set, as a worker does it the other way round
            self._go_on.acquire(timeout=_STILL_SECONDS)
        self._still = False
        self._finish()

    def _work(self) -> None:
        while True:
            self._answer(*self._jobs.get())

    def _answer(
        self, model: LoadedModel, calls: Sequence[Call], done: Done, more: More, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Answer, and go on with what waits: each turn of the event loop in between costs more than a small model."""
        work: Work | None = (calls, done)
        while work is not None:
            calls, done = work
            begun = time.monotonic()
            outcomes = answer(model, calls)
            # One that takes long for once, as when the processor is somebody else's, says little of the next.
            seconds = min(time.monotonic() - begun, 2 * _SMALL_SECONDS)
            self._seconds += (seconds - self._seconds) * _WEIGHT
            work = more()
            self._finished.append((done, outcomes, work is None))
            if work is None or not self._still:
                self._tell(loop)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._told:  # waking the loop is a call into the kernel, here and there
            return
        self._told = True
        if self._still:
            self._go_on.release()
            return
        try:
            loop.call_soon_threadsafe(self._finish)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._told = False

    def _finish(self) -> None:
        self._told = False  # before looking: what is finished from now on is told again
        while self._finished:
            done, outcomes, free = self._finished.popleft()
            self._free += free
            done(outcomes)


class ThreadRunner:
    """A model that is predicted with in threads. Raises LimitError when they cannot be started."""

    def __init__(self, model: LoadedModel, threads: Threads) -> None:
        threads.begin()
        self.metadata = model.metadata
        self._model = model
        self._threads = threads

    @property
    def free(self) -> bool:
        """Whether a worker has nothing to do."""
        return self._threads.free

    def start(self, calls: Sequence[Call], done: Done, more: More) -> None:
        """Give `calls` to a free worker."""
        self._threads.start(self._model, calls, done, more)

    def close(self) -> None:
        """Nothing: the model goes with its last reference."""


class ThreadLoader:
    """Loads models into this process, with the handler that `importing` brings."""

    def __init__(self, importing: Future[Handler], facts: ServerFacts, threads: Threads, *, warm_up: bool) -> None:
        self._importing = importing
        self._facts = facts
        self._threads = threads
        self._warm_up = warm_up

    def load(self, prepared: PreparedModel, warming: Callable[[], None]) -> ThreadRunner:
        """Load a model and let it answer once. Raises ModelError, LimitError, TemplateError."""
        model = load_model(self._importing.result(), prepared, self._facts)
        if self._warm_up:
            warming()
            model.warm_up()
        settle()
        return ThreadRunner(model, self._threads)
