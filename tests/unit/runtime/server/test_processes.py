"""What passes between server and workers, and what the server makes of workers that come and go."""

import asyncio
import pickle
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.errors import LimitError, MlimgError, ModelError, RemoteTemporaryError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.errors import InputError, PredictionError, WorkerLost
from mlimg.runtime.server.exchange import Call, Outcome, Reply
from mlimg.runtime.server.fate import Fate
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.protocols.v2_codec import V2Codec
from mlimg.runtime.server.runners import processes, wire
from mlimg.runtime.server.runners.process import Unheard
from mlimg.runtime.server.runners.processes import ProcessRunner
from mlimg.runtime.server.runners.worker import portable
from mlimg.runtime.server.state import ModelState, Phase, State


def across(value: object) -> Any:
    """What arrives of a value at the other end of a pair of sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = threading.Thread(target=wire.send, args=(ours, value))
        sending.start()
        arrived = wire.receive(theirs)
        sending.join()
    return arrived


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 1, 64 * 1024, 3 * 2**20 + 1])
def test_calls_and_outcomes_arrive_as_they_are(size: int) -> None:
    calls = [Call(V2Codec(), bytes([number]) * size) for number in range(3)]
    assert across(calls) == calls
    outcomes = [Reply(b"x" * size, "text/csv", {"a": "b"}), Reply(b"y" * size)]
    assert across(outcomes) == outcomes


def test_large_bodies_are_not_copied_into_the_pickle() -> None:
    body = b"x" * 2**20
    head, *apart = wire.pack([Call(V2Codec(), body)])
    assert len(head) < 4096
    assert apart[0] is body


def test_an_end_that_is_gone_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(wire.pack("half")[0][:-1])
        ours.close()
        with pytest.raises(EOFError):
            wire.receive(theirs)


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


class Dying:
    """A worker that dies of the first thing that it is asked, before it has read that."""

    pid, gone, too_slow = 1, False, False

    def __init__(self) -> None:
        self.dead = threading.Event()

    async def ask(self, _calls: object) -> None:
        raise Unheard

    def kill(self) -> None:
        self.dead.set()

    hang_up = kill

    def wait(self) -> int:
        self.dead.wait()
        return -9

    def close(self) -> None:
        """Nothing to let go of."""

    def death(self, _status: int) -> ModelError:
        return ModelError("it died")


class Unmoved:
    """It goes on whatever becomes of the workers, as a server does in which other models answer."""

    def changed(self, *_: Any, restarted: bool) -> None:
        """Nothing is to be done."""

    def given_up(self, *_: Any) -> None:
        """Nothing is to be done."""


@pytest.mark.parametrize("closed", [False, True])
def test_what_waits_for_workers_that_never_come_is_answered(monkeypatch: pytest.MonkeyPatch, *, closed: bool) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_SECONDS", 60 if closed else 0)

    def no_other() -> Any:
        raise ModelError("no other worker comes up")

    async def ask() -> list[Outcome]:
        worker: Any = Dying()
        runner = ProcessRunner(ModelMetadata("m", None, "python", (), ()), [worker], no_other, 60, Unmoved())
        outcomes: list[Outcome] = []
        for number in range(2):  # at the second nobody is there any more
            told = asyncio.Event()

            def done(found: Any, told: asyncio.Event = told) -> None:
                outcomes.extend(found)
                told.set()

            runner.start([Call(V2Codec(), b"")] * 2, done, lambda: None)
            if closed and number == 0:
                await asyncio.sleep(0.1)
                runner.close()
            await asyncio.wait_for(told.wait(), 10)
            assert runner.free
        return outcomes

    assert [type(outcome) for outcome in asyncio.run(ask())] == [WorkerLost] * 4


class Steady(Dying):
    """It answers, but only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    async def ask(self, calls: Any) -> Any:
        await self.may.wait()
        return [Reply(b"answer")] * len(calls)


@pytest.mark.parametrize("busy", [False, True])
def test_l10_when_one_place_is_given_up_the_others_end_with_their_answers(
    monkeypatch: pytest.MonkeyPatch, *, busy: bool
) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_SECONDS", 0)

    def no_other() -> Any:
        raise ModelError("no other worker comes up")

    async def run() -> None:
        steady, dying = Steady(), Dying()
        workers: Any = [dying, steady]  # the last is asked first
        runner = ProcessRunner(ModelMetadata("m", None, "python", (), ()), workers, no_other, 60, Unmoved())
        answered = asyncio.get_running_loop().create_future()
        if busy:
            runner.start([Call(V2Codec(), b"")], answered.set_result, lambda: None)
            await asyncio.sleep(0)  # it is asked
        assert not steady.dead.wait(0.1), "nothing is given up yet"
        dying.kill()
        assert await asyncio.to_thread(steady.dead.wait, 0.5 if busy else 10) is not busy
        if busy:
            steady.may.set()
            assert await asyncio.wait_for(answered, 10) == [Reply(b"answer")]
            assert steady.dead.is_set()

    asyncio.run(run())
