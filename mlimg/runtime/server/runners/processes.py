"""Workers that are processes of their own: none shares memory, processor locks or fate with the server or another."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final, Protocol

from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.exchange import Call
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.memory import settle
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.runners import Done, More, Wanted
from mlimg.runtime.server.runners.desk import Desk
from mlimg.runtime.server.runners.held import Job
from mlimg.runtime.server.runners.process import Worker
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


class ProcessRunner:
    """A model that is predicted with in processes. A thread watches over each and replaces it when it dies."""

    def __init__(
        self,
        metadata: ModelMetadata,
        workers: Sequence[Worker],
        revive: Callable[[], Worker],
        patience_seconds: float,
        watcher: Watcher,
        *,
        batches: bool = False,
    ) -> None:
        self.metadata = metadata
        self._revive = revive
        self._patience_seconds = patience_seconds
        self._watcher = watcher
        self._closed = threading.Event()
        self._living = set(workers)
        self._watched = set(workers)  # by the first worker of each place: those whose place is not given up
        self._desk = Desk(len(workers), patience_seconds, lambda: bool(self._watched), batches=batches)
        for worker in workers:
            self._desk.arrive(worker)
            # Daemons: none keeps the server from ending, and the workers end with it.
            threading.Thread(target=self._watch_place, args=(worker,), name=f"worker-{worker.pid}", daemon=True).start()

    @property
    def free(self) -> bool:
        """Whether a worker takes something."""
        return self._desk.free

    @property
    def living(self) -> int:
        """How many workers are alive, and loaded."""
        return len(self._living)

    def start(self, calls: Sequence[Call], done: Done, _more: More, wanted: Wanted) -> None:
        """Give `calls` to a free worker."""
        self._desk.start(Job(calls, done, wanted))

    def close(self) -> None:
        """Let the processes end."""
        self._closed.set()
        for worker in list(self._living):
            worker.hang_up()

    def _watch_place(self, worker: Worker) -> None:
        self._watch(worker)
        self._watched.discard(worker)
        self._desk.wake()

    def _watch(self, worker: Worker | None) -> None:
        """Replace a worker, and the one after it, whenever it dies."""
        crashes, answers = 0, 0
        while worker is not None:
            status = worker.wait()
            self._living.discard(worker)
            self._desk.leave(worker)
            if self._closed.is_set():
                return
            self._watcher.changed(self, restarted=False)
            if worker.too_slow:
                log.error("worker %d had no answer within %g s: it is replaced", worker.pid, self._patience_seconds)
                worker = self._replacement(0, worker.death(status))
                continue
            crashes = crashes + 1 if self._desk.answers == answers else 1
            answers = self._desk.answers
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
            log.info("worker %d is up", worker.pid)
            self._watcher.changed(self, restarted=True)
            self._desk.arrive(worker)
            if self._closed.is_set():  # meanwhile
                worker.hang_up()
            return worker
        log.error("%d crashes in a row, with no answer in between", crashes)
        self._watcher.given_up(self, death)
        self._closed.set()
        self._desk.dismiss()  # the other places' workers
        return None


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
        settle()

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
        batches = self._settings.batching.max_size > 1 and metadata.has_rows
        return ProcessRunner(metadata, workers, revive, patience_seconds, self._watcher, batches=batches)

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
