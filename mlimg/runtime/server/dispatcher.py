"""Requests wait here for a worker: so many and no more, in turn, and together where a model takes batches."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from mlimg.runtime.server.exchange import Call, Outcome, Reply
from mlimg.runtime.server.metrics import Metrics
from mlimg.runtime.server.runners import Runner, Work
from mlimg.runtime.server.settings import Batching


class Saturated(Exception):  # noqa: N818 (a state, told to the client as 503)
    """All workers are busy and the queue is full."""


@dataclass(slots=True, eq=False, repr=False)  # a deque that does not hold one tells its repr: its body's, of megabytes
class _Waiting:
    call: Call
    future: asyncio.Future[Reply]
    since: float


class Dispatcher:
    """`places` for requests, those that workers are at included. The event loop alone calls it, but for `_more`."""

    def __init__(self, places: int, batching: Batching, metrics: Metrics) -> None:
        self._places = places
        self._metrics = metrics
        metrics.watch("mlimg_queue_capacity", "Requests that are taken on at most, waiting or begun.", lambda: places)
        metrics.watch("mlimg_queue_length", "Requests that no worker has begun.", lambda: self.waiting)
        metrics.watch("mlimg_requests_in_progress", "Requests that were taken on.", lambda: self._taken)
        self._batching = batching
        self._taken = 0
        self._queues: dict[Runner, deque[_Waiting]] = {}

    @property
    def saturated(self) -> bool:
        """Whether `submit` would refuse."""
        return self._taken >= self._places

    @property
    def waiting(self) -> int:
        """How many requests no worker has begun."""
        return sum(map(len, self._queues.values()))

    def submit(self, runner: Runner, call: Call) -> asyncio.Future[Reply]:
        """Let a worker answer `call` when its turn comes. Settling the future before frees its place. Raises Saturated.

        The future raises what the call's outcome is: InputError, PredictionError, or another Exception.
        """
        if self.saturated:
            raise Saturated
        loop = asyncio.get_running_loop()
        item = _Waiting(call, loop.create_future(), time.monotonic())
        self._taken += 1
        self._queues.setdefault(runner, deque()).append(item)
        self._feed(runner)
        if runner in self._queues:
            item.future.add_done_callback(lambda _: self._leave(runner, item))
        return item.future

    def _leave(self, runner: Runner, item: _Waiting) -> None:
        with suppress(KeyError, ValueError):  # a worker has it
            self._queues[runner].remove(item)
            self._taken -= 1

    def _feed(self, runner: Runner) -> None:
        """Give the runner's free workers what waits for them."""
        queue = self._queues.get(runner)
        most = self._batching.max_size
        if most > 1 and not runner.metadata.has_rows:
            most = 1
        begun = False
        while queue and runner.free:
            if len(queue) < most and (delay := self._to_wait(queue[0])) > 0:
                asyncio.get_running_loop().call_later(delay, self._feed, runner)
                break
            batch = self._take(queue, most)
            if not batch:
                break
            begun = True
            runner.start(*self._work(batch), partial(self._more, runner), partial(_is_wanted, batch))
        if not queue:
            self._queues.pop(runner, None)
        elif begun:  # to the end: the next worker is another model's
            self._queues[runner] = self._queues.pop(runner)

    def _take(self, queue: deque[_Waiting], most: int) -> list[_Waiting]:
        """The next batch. Whoever was settled a moment ago, and has not left yet, leaves now."""
        batch: list[_Waiting] = []
        with suppress(IndexError):  # a worker was faster
            while len(batch) < most:
                item = queue.popleft()
                if item.future.done():
                    self._taken -= 1
                else:
                    batch.append(item)
        return batch

    def _work(self, batch: Sequence[_Waiting]) -> Work:
        now = time.monotonic()
        self._metrics.begun([now - item.since for item in batch])
        return [item.call for item in batch], partial(self._finish, batch)

    def _more(self, runner: Runner) -> Work | None:
        """What a worker of `runner` is to do next. It asks from its own thread, so nothing is counted here."""
        queue = self._queues.get(runner)
        if not queue or len(self._queues) > 1 or self._batching.max_size > 1:  # the event loop knows whose turn it is
            return None
        try:
            item = queue.popleft()
        except IndexError:
            return None
        if item.future.done():  # it goes through `_finish` like all others, but is not worked on
            return [], partial(self._finish, [item])
        return self._work([item])

    def _to_wait(self, first: _Waiting) -> float:
        return first.since + self._batching.max_delay_seconds - time.monotonic()

    def _finish(self, batch: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
        self._taken -= len(batch)
        for item, outcome in zip(batch, outcomes, strict=False):  # who was settled before has no outcome
            if item.future.done():  # nobody waits for it any more
                continue
            if isinstance(outcome, Exception):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)
        for runner in list(self._queues):
            self._feed(runner)


def _is_wanted(batch: Sequence[_Waiting]) -> bool:
    return not all(item.future.done() for item in batch)
