"""Workers that are threads of the server: they share its memory, its processor locks and its fate."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from mlimg.runtime.errors import LimitError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.exchange import Call, Outcome, answer
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.model import LoadedModel, load_model
from mlimg.runtime.server.runners import Done, More, Work

_Job = tuple[LoadedModel, Sequence[Call], Done, More, asyncio.AbstractEventLoop]


class Threads:
    """So many threads, which all models of a server share."""

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        # What was answered, and whether its thread has nothing to do now.
        self._finished: deque[tuple[Done, Sequence[Outcome], bool]] = deque()
        self._told = False  # whether the loop knows that something is finished
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

    def start(self, model: LoadedModel, calls: Sequence[Call], done: Done, more: More) -> None:
        """Let a free thread answer."""
        self._free -= 1
        self._jobs.put((model, calls, done, more, asyncio.get_running_loop()))

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
            outcomes = answer(model, calls)
            work = more()
            self._finished.append((done, outcomes, work is None))
            self._tell(loop)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._told:  # waking the loop is a call into the kernel, here and there
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
        return ThreadRunner(model, self._threads)
