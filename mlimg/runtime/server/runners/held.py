"""What one worker process was given and has not answered, as the event loop sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mlimg.runtime.server.exchange import Call
from mlimg.runtime.server.runners import Done
from mlimg.runtime.server.runners.process import Worker

DEPTH: Final = 16  # jobs that one worker holds, of a model of small predictions
_MOST_BYTES: Final = 1024 * 1024  # of bodies, in several jobs: each is in memory twice, or three times


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Requests that are predicted as one; mostly one. `wanted` says whether somebody waits for an answer."""

    calls: Sequence[Call]
    done: Done
    wanted: Callable[[], bool]
    again: bool = False  # a worker died that held it, and had not begun it

    @property
    def bytes(self) -> int:
        """How much its bodies are."""
        return sum(len(call.body) for call in self.calls)


class Held:
    """Jobs of one worker, in the order in which it takes them."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._jobs: dict[int, Job] = {}
        self._unsent: list[int] = []
        self._last = 0
        self._bytes = 0
        self._full = False  # until it answers
        self._seen, self._since = 0, 0.0  # what it was at, and since when at least

    def __len__(self) -> int:
        return len(self._jobs)

    def takes(self, job: Job, depth: int) -> bool:
        """Whether `job` is to be given to this worker now, which holds `depth` at most.

        One that is asked again is given alone: if that worker dies, too, it is known of what.
        """
        if not self._jobs:
            return True
        return (
            len(self._jobs) < depth
            and not self._full
            and not job.again
            and not next(iter(self._jobs.values())).again
            and self._bytes + job.bytes <= _MOST_BYTES
        )

    def add(self, job: Job) -> None:
        """Take a job, which goes with the next `send`."""
        self._last += 1
        self._bytes += job.bytes
        self._unsent.append(self._last)
        self._jobs[self._last] = job

    def send(self, now: float) -> None:
        """Send what was added, all or none. Raises BlockingIOError when it has to wait for an answer, OSError."""
        if len(self._jobs) == len(self._unsent):
            self._seen, self._since = 0, now
        try:
            self.worker.ask([(number, self._jobs[number].calls) for number in self._unsent])
        except BlockingIOError:
            self._full = True
            raise
        self._unsent.clear()

    def unsent(self) -> list[Job]:
        """Give back what `send` could not send."""
        numbers, self._unsent = self._unsent, []
        return [self._pop(number) for number in numbers]

    def answered(self, number: int) -> Job | None:
        """The job whose answer has come; None for one that was taken back."""
        self._full = False
        return self._pop(number) if number in self._jobs else None

    def look(self, now: float) -> float:
        """How long the worker has been at what it is at, in seconds, as far as it was looked at."""
        at = self.worker.page.at
        if at != self._seen or not self._jobs:
            self._seen, self._since = at, now
        return now - self._since

    def take_back(self) -> list[Job]:
        """All but what the worker is at, or about to begin, in order. It gets nothing until it answers.

        What it has answered and not sent is taken back, too: it is predicted twice, for one answer.
        """
        if len(self._jobs) == 1:
            return []
        self._full = True
        self.worker.page.taken_back = self._last
        first = self.worker.page.at or next(iter(self._jobs))
        return [self._pop(number) for number in list(self._jobs) if number != first]

    def lost(self) -> tuple[list[Job], list[Job]]:
        """What a worker that died was at, and what is to be asked again.

        What it had answered and not sent is among the latter, as when it is taken back.
        """
        at = self.worker.page.at
        lost = [job for number, job in self._jobs.items() if number == at or job.again]
        return lost, [job for job in self._jobs.values() if job not in lost]

    def _pop(self, number: int) -> Job:
        job = self._jobs.pop(number)
        self._bytes -= job.bytes
        return job
