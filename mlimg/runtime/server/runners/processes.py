"""Workers that are processes of their own: none shares memory, processor locks or fate with the server or another."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.errors import WorkerLost
from mlimg.runtime.server.exchange import Call, Outcome
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.runners import Done, More
from mlimg.runtime.server.runners.process import Unheard, Worker
from mlimg.runtime.server.runners.worker import Order
from mlimg.runtime.server.settings import Settings

log = logging.getLogger(__name__)
MAX_CRASHES: Final = 5  # of a worker, with no answer from any in between
_FIRST_PAUSE_SECONDS: Final = 0.5  # after the second; it doubles
_MARGIN_SECONDS: Final = 0.5  # beyond a request's time, so that its client has been told why there is no answer


class Watcher(Protocol):
    """Who is told what becomes of a runner's workers, by threads of theirs."""

    def changed(self, runner: "ProcessRunner", *, restarted: bool) -> None:
        """A worker died, or one was started in the place of such."""
        ...

    def given_up(self, runner: "ProcessRunner", error: Exception) -> None:
        """The workers keep dying."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    calls: Sequence[Call]
    done: Done
    again: bool = False  # a worker died before it had read them


class ProcessRunner:
    """A model that is predicted with in processes. A thread watches over each and replaces it when it dies."""

    def __init__(
        self,
        metadata: ModelMetadata,
        workers: Sequence[Worker],
        revive: Callable[[], Worker],
        patience_seconds: float,
        watcher: Watcher,
    ) -> None:
        self.metadata = metadata
        self._places = len(workers)
        self._revive = revive
        self._patience_seconds = patience_seconds
        self._watcher = watcher
        self._jobs: deque[_Job] = deque()
        self._under_way = 0
        self._answers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = threading.Event()
        # Who takes a worker out of here may use it, or close it: the event loop, or the thread that watches over it.
        self._idle = deque(workers)
        self._living = set(workers)
        self._watched = set(workers)  # by the first worker of each place: those whose place is not given up
        for worker in workers:
            # Daemons: none keeps the server from ending, and the workers end with it.
            threading.Thread(target=self._watch_place, args=(worker,), name=f"worker-{worker.pid}", daemon=True).start()

    @property
    def free(self) -> bool:
        """Whether a place has nothing to do; what is given to one whose worker died waits for the next."""
        return self._under_way < self._places

    @property
    def living(self) -> int:
        """How many workers are alive, and loaded."""
        return len(self._living)

    def start(self, calls: Sequence[Call], done: Done, _more: More) -> None:
        """Give `calls` to a free worker."""
        self._loop = asyncio.get_running_loop()
        self._under_way += 1
        self._jobs.append(_Job(calls, done))
        self._feed()

    def close(self) -> None:
        """Let the processes end."""
        self._closed.set()
        for worker in list(self._living):
            worker.hang_up()

    def _feed(self) -> None:
        while self._jobs:
            try:
                worker = self._idle.pop()
            except IndexError:
                if not self._watched:  # not at once: whoever gave the calls is not prepared for their end
                    asyncio.get_running_loop().call_soon(self._drop)
                return
            task = asyncio.get_running_loop().create_task(self._ask(worker, self._jobs.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, worker: Worker, job: _Job) -> None:
        try:
            async with asyncio.timeout(self._patience_seconds):
                outcomes: Sequence[Outcome] = await worker.ask(job.calls)
        except Exception as error:
            worker.too_slow = isinstance(error, TimeoutError)
            worker.kill()  # whatever it was: what comes from it now could be another request's answer
            worker.close()
            if isinstance(error, Unheard) and not job.again:
                self._jobs.appendleft(_Job(job.calls, job.done, again=True))
                self._feed()
                return
            outcomes = [WorkerLost(f"worker {worker.pid} was lost")] * len(job.calls)
        else:
            self._answers += 1
            if worker.gone:
                worker.close()
            else:
                self._idle.append(worker)
                if self._closed.is_set():  # by then, given up while it worked
                    worker.hang_up()
        self._under_way -= 1
        job.done(outcomes)
        self._feed()

    def _drop(self) -> None:
        """Answer what no worker will: none is left, and none will come."""
        while self._jobs:
            job = self._jobs.popleft()
            self._under_way -= 1
            job.done([WorkerLost("no worker is left")] * len(job.calls))

    def _watch_place(self, worker: Worker) -> None:
        self._watch(worker)
        self._watched.discard(worker)
        self._call_feed()

    def _call_feed(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._feed)

    def _watch(self, worker: Worker | None) -> None:
        """Replace a worker, and the one after it, whenever it dies."""
        crashes, answers = 0, 0
        while worker is not None:
            status = worker.wait()
            self._living.discard(worker)
            with suppress(ValueError):  # the event loop has it, and closes it
                self._idle.remove(worker)
                worker.close()
            if self._closed.is_set():
                return
            self._watcher.changed(self, restarted=False)
            if worker.too_slow:
                log.error("worker %d had no answer within %g s: it is replaced", worker.pid, self._patience_seconds)
                worker = self._replacement(0, worker.death(status))
                continue
            crashes = crashes + 1 if self._answers == answers else 1
            answers = self._answers
            death = worker.death(status)
            log.error("worker %d: %s; it is replaced", worker.pid, death)
            worker = self._replacement(crashes, death)

    def _replacement(self, crashes: int, death: Exception) -> Worker | None:
        """A new worker, after a pause that grows with crashes in a row; None when it is time to give up, or closed."""
        while crashes < MAX_CRASHES:
            if self._closed.wait(_FIRST_PAUSE_SECONDS * 2 ** (crashes - 2) if crashes > 1 else 0):
                return None
            try:
                worker = self._revive()
            except Exception as error:
                log.error("no worker could be started", exc_info=error)
                crashes, death = crashes + 1, error
                continue
            self._living.add(worker)
            self._idle.append(worker)
            log.info("worker %d is up", worker.pid)
            self._watcher.changed(self, restarted=True)
            if self._closed.is_set():  # meanwhile
                worker.hang_up()
            else:
                self._call_feed()
            return worker
        log.error("%d crashes in a row, with no answer in between", crashes)
        self._watcher.given_up(self, death)
        self._give_up()
        return None

    def _give_up(self) -> None:
        """Let the other places' workers end, each when it has answered what it was asked."""
        self._closed.set()
        for worker in list(self._idle):
            worker.hang_up()


class ProcessLoader:
    """Loads models into processes of their own; the first model's are those that `importing` brings."""

    def __init__(
        self,
        importing: Future[Sequence[Worker]],
        environ: Mapping[str, str],
        settings: Settings,
        facts: ServerFacts,
        watcher: Watcher,
    ) -> None:
        self._importing: Future[Sequence[Worker]] | None = importing
        self._environ = environ
        self._settings = settings
        self._facts = facts
        self._watcher = watcher

    def load(self, prepared: PreparedModel, warming: Callable[[], None]) -> ProcessRunner:
        """Load a model in each process and let it answer once. Raises ModelError, LimitError, TemplateError."""
        order = Order(prepared, self._facts, self._settings.warm_up)
        workers, self._importing = self._workers(), None
        try:
            for worker in workers:
                worker.order(order)
            metadata, *_ = [worker.load(warming if worker is workers[0] else _nothing) for worker in workers]
        except BaseException:
            _discard(workers)
            raise

        def revive() -> Worker:
            (worker,) = start_workers(self._environ, 1, self._settings.workers)
            try:
                worker.order(order)
                worker.load(_nothing)
            except BaseException:
                _discard([worker])
                raise
            return worker

        patience_seconds = self._settings.request_timeout_seconds + _MARGIN_SECONDS
        return ProcessRunner(metadata, workers, revive, patience_seconds, self._watcher)

    def _workers(self) -> Sequence[Worker]:
        count = self._settings.workers
        return self._importing.result() if self._importing else start_workers(self._environ, count, count)


def start_workers(environ: Mapping[str, str], count: int, siblings: int) -> Sequence[Worker]:
    """Start processes, and wait until each has imported the handler. Raises ModelError, LimitError, TemplateError."""
    workers = [Worker(environ, siblings) for _ in range(count)]
    try:
        for worker in workers:
            worker.imported()
    except BaseException:
        _discard(workers)
        raise
    return workers


def _discard(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.discard()


def _nothing() -> None:
    """One worker's warm-up is told of, the others' are like it."""
