"""Workers that are threads: they share the server's memory, its processor locks and its fate.

The event loop and a model of small predictions take the interpreter's lock from each other with every call into the
kernel, and the caches with every turn, which costs more than the predictions. So the thread that leads the loop
predicts what is small, for a moment, and the loop stands still.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from mlimg.runtime.errors import LimitError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.exchange import Call, Outcome, answer
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.leader import Pause
from mlimg.runtime.server.memory import settle
from mlimg.runtime.server.model import LoadedModel, load_model
from mlimg.runtime.server.runners import Done, More, Wanted
from mlimg.runtime.server.runners.pace import Pace

_STILL_SECONDS: Final = 0.005  # of the event loop at once, at most, unless a single prediction takes longer


@dataclass(frozen=True, slots=True)
class _Job:
    model: LoadedModel
    pace: Pace
    calls: Sequence[Call]
    done: Done
    more: More
    loop: asyncio.AbstractEventLoop


class Threads:
    """So many threads, which all models of a server share.

    `pause` is that of the event loop's leader, who predicts with it what is small; without it, threads do all of it.
    """

    def __init__(self, count: int, pause: Pause | None = None) -> None:
        self._count = self._free = count
        self._pause = pause
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._handed_over: deque[_Job] = deque()  # to the leader
        self._at: Pace | None = None  # of the model that the leader is at
        # What was answered, and whether its place is free now.
        self._finished: deque[tuple[Done, Sequence[Outcome], bool]] = deque()
        self._told = False  # whether the loop knows that something is finished: waking it is a call into the kernel
        self._started = False

    @property
    def free(self) -> bool:
        """Whether a thread has nothing to do."""
        return self._free > 0

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

    def start(self, model: LoadedModel, pace: Pace, calls: Sequence[Call], done: Done, more: More) -> None:
        """Let a free thread answer, or the leader."""
        self._free -= 1
        job = _Job(model, pace, calls, done, more, asyncio.get_running_loop())
        if self._pause is None or not pace.is_steady:
            self._jobs.put(job)
            return
        if not self._handed_over:
            self._pause(self._lead, self._go_on)
        self._handed_over.append(job)

    def _lead(self) -> None:
        """Answer what was handed over, for a moment."""
        until = time.monotonic() + _STILL_SECONDS
        job = self._next_handed_over()
        while job is not None and time.monotonic() < until:
            self._at = job.pace
            job = self._answer(job)
        self._at = None
        if job is not None:
            self._jobs.put(job)

    def _go_on(self) -> None:
        """Let threads do what the leader had no time for, or was not there for."""
        if self._at is not None:
            self._at.held_up()
        while (job := self._next_handed_over()) is not None:
            self._jobs.put(job)
        self._finish()

    def _next_handed_over(self) -> _Job | None:
        try:
            return self._handed_over.popleft()
        except IndexError:
            return None

    def _work(self) -> None:
        while True:
            job: _Job | None = self._jobs.get()
            while job is not None:
                following = self._answer(job)
                self._tell(job.loop)
                job = following

    def _answer(self, job: _Job) -> _Job | None:
        """Answer; what this thread is to do next, as each turn of the event loop in between costs more than that."""
        begun = time.monotonic()
        outcomes = answer(job.model, job.calls)
        job.pace.note(time.monotonic() - begun)
        following, frees = self._next_handed_over(), True
        if following is None and (work := job.more()) is not None:
            following, frees = _Job(job.model, job.pace, *work, job.more, job.loop), False
        self._finished.append((job.done, outcomes, frees))
        return following

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._told:
            return
        self._told = True
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
        self._pace = Pace()
        self._threads = threads

    @property
    def free(self) -> bool:
        """Whether a worker has nothing to do."""
        return self._threads.free

    def start(self, calls: Sequence[Call], done: Done, more: More, _wanted: Wanted) -> None:
        """Give `calls` to a free worker, which begins them at once or nearly so."""
        self._threads.start(self._model, self._pace, calls, done, more)

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
