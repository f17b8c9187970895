"""What passes between server and workers, and what the server makes of workers that come and go."""

import asyncio
import errno
import os
import pickle
import select
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.errors import LimitError, MlimgError, ModelError, RemoteTemporaryError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.dispatcher import Dispatcher
from mlimg.runtime.server.errors import InputError, PredictionError, WorkerLost
from mlimg.runtime.server.exchange import Call, Outcome, Reply
from mlimg.runtime.server.fate import Fate
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.metrics import Metrics
from mlimg.runtime.server.protocols.v2_codec import V2Codec
from mlimg.runtime.server.runners import processes, wire
from mlimg.runtime.server.runners.held import DEPTH
from mlimg.runtime.server.runners.page import Page, make_page
from mlimg.runtime.server.runners.processes import ProcessRunner
from mlimg.runtime.server.runners.worker import portable
from mlimg.runtime.server.settings import Batching
from mlimg.runtime.server.state import ModelState, Phase, State


def across(value: object) -> Any:
    """What arrives of a value at the other end of a pair of sockets."""
    ours, theirs = wire.pair()
    with ours, theirs:
        wire.send(ours, value)
        return wire.receive(theirs)


@pytest.mark.parametrize("size", [0, 1, 32 * 1024 - 1, 32 * 1024, 3 * 2**20 + 1])
def test_calls_and_outcomes_arrive_as_they_are(size: int) -> None:
    calls = [Call(V2Codec(), bytes([number]) * size) for number in range(3)]
    assert across(calls) == calls
    outcomes = [Reply(b"x" * size, "text/csv", {"a": "b"}), Reply(b"y" * size)]
    assert across(outcomes) == outcomes


@pytest.mark.parametrize("size", [1, 2**20])
def test_what_is_large_leaves_no_file_open(size: int) -> None:
    across(b"x" * size)
    before = set(Path("/proc/self/fd").iterdir())
    across(b"x" * size)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_an_end_that_is_gone_is_the_end_after_what_it_had_sent() -> None:
    ours, theirs = wire.pair()
    with theirs:
        wire.send(ours, "last")
        ours.close()
        assert wire.receive(theirs) == "last"
        with pytest.raises(EOFError):
            wire.receive(theirs)


def test_a_page_is_the_same_memory_for_both() -> None:
    descriptor = make_page()
    server, worker = Page(os.dup(descriptor)), Page(descriptor)
    worker.at, server.taken_back = 2**40 + 1, 7
    assert (server.at, server.taken_back, worker.at, worker.taken_back) == (2**40 + 1, 7, 2**40 + 1, 7)


class HandlerError(ModelError):
    """An error that the server has no class for."""


class WrongInputError(InputError):
    """Another."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LimitError("too large", hint="buy more", log=["a", "b"]), LimitError),
        (RemoteTemporaryError("not now"), RemoteTemporaryError),
        (HandlerError("bad", hint="good"), ModelError),
    ],
)
def test_an_error_of_ours_keeps_class_text_hint_and_status(error: MlimgError, kind: type[MlimgError]) -> None:
    told = pickle.loads(pickle.dumps(portable(error)))
    assert type(told) is kind
    assert (told.message, told.hint, told.log, told.status) == (error.message, error.hint, error.log, error.status)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (WrongInputError("a text"), InputError, "a text"),
        (PredictionError("why"), PredictionError, "why"),
        (ZeroDivisionError("a\nb"), RuntimeError, "ZeroDivisionError: a"),
    ],
)
def test_an_error_of_a_request_is_one_that_the_server_knows(error: Exception, kind: type, text: str) -> None:
    told = pickle.loads(pickle.dumps(portable(error)))
    assert (type(told), str(told)) == (kind, text)


class Workers:
    """So many workers."""

    def __init__(self, name: str, living: int) -> None:
        self.metadata = ModelMetadata(name, None, "python", (), ())
        self.living = living


def state_of(*runners: Any) -> State:
    state = State(tuple(ModelState() for _ in runners))
    for model, runner in zip(state.models, runners, strict=True):
        model.is_up(runner, PreparedModel(Path("/models"), None, "/models", 0, 0.0, cache_hit=False))
    return state


def test_l10_a_model_is_ready_while_a_worker_of_its_lives() -> None:
    workers: Any = Workers("digits", 1)
    state = state_of(workers)
    fate = Fate(state)
    fate.changed(workers, restarted=False)
    ready = [state.ready]
    for workers.living in (0, 1):
        fate.changed(workers, restarted=workers.living == 1)
        ready.append(state.ready)
    assert ready == [True, False, True]
    assert state.restarts == 1


def test_workers_of_a_model_that_is_unloaded_do_not_bring_it_back() -> None:
    workers: Any = Workers("digits", 1)
    state = state_of(workers)
    state.models[0].enter(Phase.UNLOADED)
    Fate(state).changed(workers, restarted=True)
    assert state.models[0].phase is Phase.UNLOADED


def test_of_several_models_one_whose_workers_keep_dying_fails_alone() -> None:
    dying: Any = Workers("digits", 0)
    state = state_of(dying, Workers("wine", 1))
    Fate(state).given_up(dying, ModelError("a worker process was killed"))
    digits, wine = state.models
    assert (digits.phase, digits.reason) == (Phase.FAILED, "a worker process was killed")
    assert wine.phase is Phase.READY
    assert state.ready


class Puppet:
    """A worker whose part the test plays, at the other end of real sockets; as a process it never was."""

    pid = 1
    too_slow = False

    def __init__(self) -> None:
        self.link, self.end = wire.pair()
        self.page = Page(make_page())
        self.link.setblocking(False)
        self.end.settimeout(10)
        self.dead = threading.Event()

    def ask(self, jobs: Any) -> None:
        wire.send(self.link, jobs)

    def hear(self) -> Any:
        return wire.receive(self.link)

    def kill(self) -> None:
        self.end.close()
        self.dead.set()

    hang_up = kill

    def wait(self) -> int:
        self.dead.wait()
        return -9

    def close(self) -> None:
        self.link.close()

    def death(self, _status: int) -> ModelError:
        return ModelError("it died")

    async def message(self) -> dict[int, bytes]:
        """What it is sent next: jobs by number, each by its first body."""
        jobs = await asyncio.to_thread(wire.receive, self.end)
        return {number: calls[0].body for number, calls in jobs}

    def answer(self, number: int, body: bytes | None, seconds: float = 0.0) -> None:
        """Answer a job of one call; with None, say that it was taken back."""
        wire.send(self.end, [(number, None if body is None else [Reply(body)], seconds)])

    @property
    def was_told(self) -> bool:
        """Whether a message is there that it has not read."""
        return bool(select.select([self.end], [], [], 0)[0])


class Unmoved:
    """It goes on whatever becomes of the workers, as a server does in which other models answer."""

    def changed(self, *_: Any, restarted: bool) -> None:
        """Nothing is to be done."""

    def given_up(self, *_: Any) -> None:
        """Nothing is to be done."""


def no_other() -> Any:
    raise ModelError("no other worker comes up")


class Asked:
    """A runner of puppets, and what became of what it was asked, by body."""

    def __init__(self, *workers: Any, others: Sequence[Any] = (), patience_seconds: float = 60, **how: bool) -> None:
        waiting = list(others)
        self.runner = ProcessRunner(
            ModelMetadata("m", None, "python", (), ()),
            workers,
            lambda: waiting.pop(0) if waiting else no_other(),
            patience_seconds,
            Unmoved(),
            **how,
        )
        self.outcomes: dict[bytes, Outcome] = {}
        self.unwanted: set[bytes] = set()

    def ask(self, *bodies: bytes) -> None:
        for body in bodies:
            call = Call(V2Codec(), body)
            done = partial(self._done, body)
            self.runner.start([call], done, lambda: None, partial(self._is_wanted, body))

    def _done(self, body: bytes, outcomes: Sequence[Outcome]) -> None:
        assert body not in self.outcomes, "it is told once"
        self.outcomes[body] = outcomes[0] if outcomes else RuntimeError("not begun")

    def _is_wanted(self, body: bytes) -> bool:
        return body not in self.unwanted

    async def answers(self, count: int) -> dict[bytes, Any]:
        """What so many requests came to: the bodies of their answers, or the classes of errors."""
        async with asyncio.timeout(10):
            while len(self.outcomes) < count:
                await asyncio.sleep(0.001)
        return {
            body: outcome.body if isinstance(outcome, Reply) else type(outcome)
            for body, outcome in self.outcomes.items()
        }


BODIES = [b"%d" % number for number in range(20)]


def test_of_one_turn_all_that_a_worker_takes_is_one_message_and_each_has_its_own_answer() -> None:
    async def test() -> None:
        worker = Puppet()
        asked = Asked(worker)
        asked.ask(*BODIES)
        jobs = await worker.message()
        assert list(jobs.values()) == BODIES[:DEPTH]
        assert not worker.was_told
        for number, body in reversed(jobs.items()):
            worker.answer(number, b"of " + body)
        found = await asked.answers(DEPTH)
        for number, body in (await worker.message()).items():
            worker.answer(number, b"of " + body)
        found = await asked.answers(len(BODIES))
        assert found == {body: b"of " + body for body in BODIES}

    asyncio.run(test())


def test_slow_predictions_are_given_one_by_one_and_a_worker_that_is_free_gets_the_next() -> None:
    async def test() -> None:
        workers = Puppet(), Puppet()
        asked = Asked(*workers)
        for body in BODIES:  # so that it is known
            asked.ask(body)
            await asyncio.sleep(0.001)
            (worker,) = (worker for worker in workers if worker.was_told)
            worker.answer(next(iter(await worker.message())), b"", seconds=1)
            await asked.answers(int(body) + 1)
        assert asked.runner.free
        asked.ask(b"a", b"b")
        assert not asked.runner.free
        asked.ask(b"c")
        first, second = [await worker.message() for worker in workers]
        assert sorted([*first.values(), *second.values()]) == [b"a", b"b"]
        workers[1].answer(next(iter(second)), b"")
        assert list((await workers[1].message()).values()) == [b"c"]

    asyncio.run(test())


def test_batches_are_given_one_by_one_from_the_start() -> None:
    async def test() -> None:
        asked = Asked(Puppet(), batches=True)
        assert asked.runner.free
        asked.ask(b"a")
        assert not asked.runner.free

    asyncio.run(test())


def test_h9_a_crash_costs_what_the_worker_was_at_and_the_rest_is_asked_again_each_alone() -> None:
    async def test() -> None:
        worker, second, third = Puppet(), Puppet(), Puppet()
        asked = Asked(worker, others=[second, third])
        asked.ask(b"answered", b"unsent", b"at", b"next", b"last")
        jobs = {body: number for number, body in (await worker.message()).items()}
        worker.answer(jobs[b"answered"], b"1")
        worker.page.at = jobs[b"at"]
        worker.kill()
        assert await asked.answers(2) == {b"answered": b"1", b"at": WorkerLost}
        again = await second.message()
        assert list(again.values()) == [b"unsent"]
        second.answer(*again, b"2")
        assert list((await second.message()).values()) == [b"next"]
        second.kill()  # twice is enough, whatever it was at
        for number, body in (await third.message()).items():
            assert body == b"last"
            third.answer(number, b"3")
        found = await asked.answers(5)
        assert (found[b"unsent"], found[b"next"], found[b"last"]) == (b"2", WorkerLost, b"3")

    asyncio.run(test())


def test_what_waits_behind_a_slow_prediction_is_taken_back_and_given_to_another_worker() -> None:
    async def test() -> None:
        slow, other = Puppet(), Puppet()
        asked = Asked(slow, other)
        asked.ask(*BODIES[:4])
        numbers = {body: number for number, body in (await slow.message()).items()}
        for number, body in (await other.message()).items():
            other.answer(number, body)
        at, behind = numbers
        slow.page.at = numbers[at]
        (again,) = (await other.message()).items()
        assert again[1] == behind
        assert slow.page.taken_back == numbers[behind]
        asked.ask(b"later")
        (later,) = (await other.message()).items()
        assert later[1] == b"later"
        other.answer(later[0], b"later")
        slow.answer(numbers[behind], b"it had begun it a moment before")
        other.answer(again[0], b"of another")
        slow.answer(numbers[at], b"slow")
        found = await asked.answers(5)
        assert (found[at], found[behind]) == (b"slow", b"of another")

    asyncio.run(test())


def test_what_a_worker_did_not_begin_is_given_again() -> None:
    async def test() -> None:
        worker = Puppet()
        asked = Asked(worker)
        asked.ask(b"a")
        worker.answer(*await worker.message(), None)
        (number,) = await worker.message()
        worker.answer(number, b"1")
        assert await asked.answers(1) == {b"a": b"1"}

    asyncio.run(test())


def test_what_nobody_wants_any_more_is_not_given_to_a_worker() -> None:
    async def test() -> None:
        worker = Puppet()
        asked = Asked(worker)
        asked.ask(b"a", b"b", b"c")
        asked.unwanted.add(b"b")
        assert list((await worker.message()).values()) == [b"a", b"c"]
        assert await asked.answers(1) == {b"b": RuntimeError}

    asyncio.run(test())


def test_h10_a_worker_that_hangs_is_killed_and_another_answers_what_waited() -> None:
    async def test() -> None:
        worker, other = Puppet(), Puppet()
        asked = Asked(worker, others=[other], patience_seconds=0.3)
        asked.ask(b"hangs", b"waits")
        (hangs, _) = await worker.message()
        worker.page.at = hangs
        again = await other.message()
        assert worker.too_slow
        assert list(again.values()) == [b"waits"]
        other.answer(*again, b"1")
        assert await asked.answers(2) == {b"hangs": WorkerLost, b"waits": b"1"}

    asyncio.run(test())


def test_what_has_no_room_in_the_socket_waits_for_an_answer() -> None:
    async def test() -> None:
        worker = Puppet()
        asked = Asked(worker)
        bodies = [bytes([number]) * 30_000 for number in range(DEPTH)]
        for body in bodies:  # each in a message of its own
            asked.ask(body)
            await asyncio.sleep(0.001)
        told: dict[int, bytes] = {}
        while worker.was_told:
            told |= await worker.message()
        assert 0 < len(told) < DEPTH
        while told:
            for number, body in told.items():
                worker.answer(number, body[:1])
            await asked.answers(len(asked.outcomes) + len(told))
            told = await worker.message() if len(asked.outcomes) < DEPTH else {}
        assert await asked.answers(DEPTH) == {body: body[:1] for body in bodies}

    asyncio.run(test())


@pytest.mark.parametrize("closed", [False, True])
def test_what_waits_for_workers_that_never_come_is_answered(monkeypatch: pytest.MonkeyPatch, *, closed: bool) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_SECONDS", 60 if closed else 0)

    async def test() -> None:
        worker = Puppet()
        asked = Asked(worker)
        asked.ask(b"first")
        await worker.message()
        worker.kill()  # before it has begun
        if closed:
            await asyncio.sleep(0.1)
            asked.runner.close()
        await asked.answers(1)
        asked.ask(b"second")  # nobody is there any more
        assert await asked.answers(2) == {b"first": WorkerLost, b"second": WorkerLost}
        assert asked.runner.free

    asyncio.run(test())


@pytest.mark.parametrize("busy", [False, True])
def test_l10_when_one_place_is_given_up_the_others_end_with_their_answers(
    monkeypatch: pytest.MonkeyPatch, *, busy: bool
) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_SECONDS", 0)

    async def test() -> None:
        steady, dying = Puppet(), Puppet()
        asked = Asked(steady, dying)
        if busy:
            asked.ask(b"a")
            (number,) = await steady.message()
        assert not steady.dead.wait(0.1), "nothing is given up yet"
        dying.kill()
        assert await asyncio.to_thread(steady.dead.wait, 0.5 if busy else 10) is not busy
        if busy:
            steady.answer(number, b"answer")
            assert await asked.answers(1) == {b"a": b"answer"}
            assert await asyncio.to_thread(steady.dead.wait, 10)

    asyncio.run(test())


def test_when_nothing_can_be_sent_all_that_waits_is_told_and_no_place_is_lost() -> None:
    def broken(_jobs: Any) -> None:
        raise OSError(errno.EMFILE, "no more files")

    async def test() -> None:
        worker = Puppet()
        runner = Asked(worker, batches=True).runner  # one after another, each when the one before has failed
        dispatcher = Dispatcher(1000, Batching(), Metrics(State()))
        futures = [dispatcher.submit(runner, Call(V2Codec(), b"")) for _ in range(1000)]
        (number,) = await worker.message()
        worker.ask = broken  # type: ignore[method-assign]
        worker.answer(number, b"1")
        _, untold = await asyncio.wait(futures, timeout=5)
        assert not untold
        assert futures[0].result() == Reply(b"1")
        assert {type(future.exception()) for future in futures[1:]} == {OSError}
        assert not dispatcher.saturated

    asyncio.run(test())
