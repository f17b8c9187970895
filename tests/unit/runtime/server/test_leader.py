"""The event loop goes on whatever its thread is at."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from mlimg.runtime.errors import LimitError
from mlimg.runtime.server.leader import Leader
from tests.unit.runtime.server.conftest import lead


async def pause(leader: Leader[Any], work: Callable[[], object]) -> None:
    """Let the loop stand still for `work`, or go on beside it."""
    then = asyncio.Event()
    leader.pause(work, then.set)
    await then.wait()


@pytest.mark.usefixtures("patient")
def test_work_is_done_by_the_loop_s_thread_while_no_loop_runs() -> None:
    found: list[Any] = []

    async def main(leader: Leader[Any]) -> str:
        def work() -> None:
            found.append(threading.get_ident() == thread)
            found.append(asyncio.run(asyncio.sleep(0, "a loop of its own")))

        thread = threading.get_ident()
        await pause(leader, work)
        assert threading.get_ident() == thread
        return "done"

    assert lead(main) == "done"
    assert found == [True, "a loop of its own"]


@pytest.mark.usefixtures("patient")
def test_context_that_work_sets_is_not_the_loop_s() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nothing")
    found: list[str] = []

    async def main(leader: Leader[Any]) -> None:
        await pause(leader, lambda: variable.set("work"))
        await pause(leader, lambda: found.append(variable.get()))

    lead(main)
    assert found == ["nothing"]


def test_what_the_turn_had_to_do_is_done_before() -> None:
    async def main(leader: Leader[Any]) -> list[str]:
        said: list[str] = []
        then = asyncio.Event()
        leader.pause(lambda: said.append("work"), then.set)
        asyncio.get_running_loop().call_soon(said.append, "turn")
        await then.wait()
        return said

    assert lead(main) == ["turn", "work"]


def test_the_loop_goes_on_beside_work_that_takes_too_long() -> None:
    async def main(leader: Leader[Any]) -> None:
        for _ in range(5):
            go, calls, ended = threading.Event(), 0, asyncio.Event()

            def then(ended: asyncio.Event = ended) -> None:
                nonlocal calls
                calls += 1
                ended.set()

            thread = threading.get_ident()
            leader.pause(go.wait, then)
            await ended.wait()
            assert threading.get_ident() != thread
            assert calls == 1  # it was found to take long
            ended.clear()
            go.set()
            await ended.wait()
            assert calls == 2  # it has ended

    lead(main)


def test_work_that_ends_late_does_not_take_the_loop_from_who_leads_now() -> None:
    async def main(leader: Leader[Any]) -> None:
        first, second = threading.Event(), threading.Event()
        first_then, second_then = asyncio.Event(), asyncio.Event()
        leader.pause(first.wait, first_then.set)
        await first_then.wait()
        first_then.clear()

        def hang() -> None:
            first.set()
            second.wait(10)

        leader.pause(hang, second_then.set)
        await first_then.wait()
        await second_then.wait()
        assert not second.is_set(), "it hangs, and that was found"
        second.set()

    begun = time.monotonic()
    lead(main)
    assert time.monotonic() - begun < 5


def test_work_after_a_long_rest_is_looked_after_as_well() -> None:
    async def main(leader: Leader[Any]) -> None:
        await pause(leader, lambda: None)
        await asyncio.sleep(0.1)  # the follower sleeps again
        go = threading.Event()
        await pause(leader, lambda: go.wait(10))
        assert not go.is_set()
        go.set()

    begun = time.monotonic()
    lead(main)
    assert time.monotonic() - begun < 5


def test_work_that_never_ends_does_not_keep_the_loop_from_its_end() -> None:
    go = threading.Event()

    async def main(leader: Leader[Any]) -> int:
        await pause(leader, lambda: go.wait(60))
        return 3

    assert lead(main) == 3
    go.set()


def test_what_breaks_is_raised() -> None:
    async def main(_leader: Leader[Any]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lead(main)


def test_a_loop_that_is_broken_ends() -> None:
    def end() -> None:
        raise SystemExit(5)

    async def main(_leader: Leader[Any]) -> None:
        asyncio.get_running_loop().call_soon(end)
        await asyncio.sleep(10)

    with pytest.raises(SystemExit):
        lead(main)


def test_without_threads_there_is_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main(_leader: Leader[Any]) -> None:
        raise AssertionError

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LimitError, match="no thread"):
        lead(main)


def test_a_loop_that_can_have_no_follower_does_nothing_that_could_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main(leader: Leader[Any]) -> None:
        go, done = threading.Event(), threading.Event()
        await pause(leader, go.wait)  # the follower leads now
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            await pause(leader, done.set)
            assert not done.is_set()
        await pause(leader, done.set)
        assert done.is_set()
        go.set()

    lead(main)


def test_a_thread_that_led_once_follows_again() -> None:
    async def main(leader: Leader[Any]) -> None:
        threads = set()
        for _ in range(6):
            threads.add(threading.get_ident())
            go, ended = threading.Event(), asyncio.Event()
            leader.pause(go.wait, ended.set)
            await ended.wait()
            ended.clear()
            go.set()
            await ended.wait()
            await asyncio.sleep(0.01)  # the thread rests by now
        assert len(threads) <= 3

    lead(main)


def test_what_would_stop_the_loop_does_not_stop_who_closes_it() -> None:
    async def main(leader: Leader[Any]) -> None:
        background.append(asyncio.create_task(asyncio.sleep(60)))
        leader.pause(lambda: None, lambda: None)

    background: list[Any] = []
    lead(main)
    assert background[0].cancelled()
