"""Which of a model's worker processes is given what: the requests of one turn of the event loop go in one message.

A message costs more than a small prediction, so a worker holds several jobs while predictions are small. Each is
predicted by itself. What waits behind one that is suddenly slow is taken back, and given to another.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from mlimg.runtime.server.errors import WorkerLost
from mlimg.runtime.server.exchange import Outcome
from mlimg.runtime.server.runners.held import DEPTH, Held, Job
from mlimg.runtime.server.runners.pace import Pace
from mlimg.runtime.server.runners.process import Worker

_LOOK_SECONDS: Final = 0.01  # between looks at what workers are at, while they are at something


class Desk:
    """Jobs and workers. The event loop alone calls it, but for `arrive` and `leave`.

    `batches`: a job is what had to wait, so a worker holds one. `staffed` says whether a worker may still come.
    """

    def __init__(self, places: int, patience_seconds: float, staffed: Callable[[], bool], *, batches: bool) -> None:
        self.answers = 0
        self._places = places
        self._depth = 1 if batches else DEPTH
        self._patience_seconds = patience_seconds
        self._staffed = staffed
        self._pace = Pace()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: deque[Job] = deque()
        self._under_way = 0
        self._turn_ends = False  # whether jobs are handed out at the end of this turn
        self._looks = False
        self._dismissed = False
        # Who takes a worker out of here may use it, or close it: the event loop, or the thread that watches over it.
        self._arrivals: deque[Worker] = deque()
        self._at_work: list[Held] = []

    @property
    def free(self) -> bool:
        """Whether a worker may take something; what is given to one that died waits for the next."""
        return self._under_way < self._places * self._depth_now

    @property
    def _depth_now(self) -> int:
        return self._depth if self._pace.is_small else 1

    def start(self, job: Job) -> None:
        """Have a job done."""
        self._loop = asyncio.get_running_loop()
        self._under_way += 1
        self._jobs.append(job)
        if self._under_way == 1 and not self._dismissed:  # nobody to go along with, and a worker that waits
            self._fill()
        if self._jobs:
            self._soon()

    def arrive(self, worker: Worker) -> None:
        """Take a worker on, from any thread."""
        self._arrivals.append(worker)
        self.wake()

    def leave(self, worker: Worker) -> None:
        """Part with a worker that has ended, from any thread. The event loop finds out by itself if it has it."""
        with suppress(ValueError):
            self._arrivals.remove(worker)
            worker.close()
        self.wake()

    def dismiss(self) -> None:
        """Let all workers end, from any thread, each when it has answered what it was asked."""
        self._dismissed = True
        for worker in list(self._arrivals):
            worker.hang_up()
        self.wake()

    def wake(self) -> None:
        """Let the event loop see what has become of the workers, from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_out)

    def _soon(self) -> None:
        if not self._turn_ends and self._loop is not None:
            self._turn_ends = True
            self._loop.call_soon(self._hand_out)

    def _hand_out(self) -> None:
        self._turn_ends = False
        while self._arrivals:
            with suppress(IndexError):  # it died a moment ago
                self._take_on(self._arrivals.popleft())
        for job in [job for job in self._jobs if not job.wanted()]:
            self._jobs.remove(job)
            self._settle(job, ())
        if self._dismissed:
            self._send_away()
        else:
            self._fill()
        if not self._at_work and not self._staffed():
            while self._jobs:
                job = self._jobs.popleft()
                self._settle(job, [WorkerLost("no worker is left")] * len(job.calls))

    def _take_on(self, worker: Worker) -> None:
        held = Held(worker)
        self._at_work.append(held)
        asyncio.get_running_loop().add_reader(worker.link, self._hear, held)

    def _send_away(self) -> None:
        for held in self._at_work:
            if not len(held):
                held.worker.hang_up()

    def _fill(self) -> None:
        """Give jobs to workers, to all alike, and to each its own in one message."""
        given: dict[Held, None] = {}
        while self._jobs:
            takers = (held for held in self._at_work if held.takes(self._jobs[0], self._depth_now))
            held = min(takers, key=len, default=None)
            if held is None:
                break
            held.add(self._jobs.popleft())
            given[held] = None
        for held in given:
            self._send(held)
        if given and not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _send(self, held: Held) -> None:
        try:
            held.send(asyncio.get_running_loop().time())
        except BlockingIOError:
            self._jobs.extendleft(reversed(held.unsent()))
        except ConnectionError:  # it died: the end of its answers is on the way
            pass
        except Exception as error:  # no memory for it, or no more files
            for job in held.unsent():  # later: it makes room for one that may fail as well, and so on
                asyncio.get_running_loop().call_soon(self._settle, job, [error] * len(job.calls))

    def _hear(self, held: Held) -> None:
        """Take all answers that are there: each turn of the event loop costs as much as one."""
        while True:
            try:
                answers = held.worker.hear()
            except (BlockingIOError, ConnectionResetError):  # the latter comes before what a dead worker had answered
                break
            except Exception:  # whatever it was: what comes from it now could be another request's answer
                self._lose(held)
                return
            for answer in answers:
                self._take(held, *answer)
        if self._jobs or self._dismissed:
            self._soon()

    def _take(self, held: Held, number: int, outcomes: Sequence[Outcome] | None, seconds: float) -> None:
        job = held.answered(number)
        if job is None:  # it was taken back
            return
        if outcomes is None:
            self._jobs.appendleft(job)
            return
        self._pace.note(seconds)
        self.answers += 1
        self._settle(job, outcomes)

    def _settle(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        self._under_way -= 1
        job.done(outcomes)

    def _lose(self, held: Held) -> None:
        """Part with a worker that is gone: what it was at is lost, the rest is asked again."""
        asyncio.get_running_loop().remove_reader(held.worker.link)
        self._at_work.remove(held)
        if len(held):
            held.worker.kill()
        held.worker.close()
        lost, again = held.lost()
        self._jobs.extendleft(replace(job, again=True) for job in reversed(again))
        for job in lost:
            self._settle(job, [WorkerLost(f"worker {held.worker.pid} was lost")] * len(job.calls))
        self._soon()

    def _look(self) -> None:
        """See what workers are at: what hangs is killed, what waits behind a slow prediction taken back."""
        loop = asyncio.get_running_loop()
        slow = []
        for held in self._at_work:
            seconds = held.look(loop.time())
            if seconds > self._patience_seconds:
                held.worker.too_slow = True
                held.worker.kill()
            elif seconds > _LOOK_SECONDS / 2:
                slow.append(held)
        if len(slow) < len(self._at_work):  # else nobody would be faster
            for held in slow:
                self._jobs.extendleft(reversed(held.take_back()))
        if self._jobs:
            self._soon()
        self._looks = self._under_way > 0
        if self._looks:
            loop.call_later(_LOOK_SECONDS, self._look)
