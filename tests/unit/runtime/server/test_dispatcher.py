"""Who is worked on when, and with whom: a runner driven by hand shows what it was given."""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.server.dispatcher import Dispatcher, Saturated
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.exchange import Call, Outcome, Reply
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.metrics import Metrics
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.protocols.v2 import V2Codec
from mlimg.runtime.server.runners import Done, More, Wanted, Work
from mlimg.runtime.server.runners.threads import ThreadRunner, Threads
from mlimg.runtime.server.settings import Batching
from mlimg.runtime.server.state import State
from mlimg.runtime.server.tensors import TensorSpec


class Workers:
    """So many workers, of one model or of several."""

    def __init__(self, count: int) -> None:
        self.free = count


class HandRunner:
    """Begins what it is given, and ends it when it is told."""

    def __init__(self, workers: Workers, *, rows: bool = True) -> None:
        spec = TensorSpec("x", "FP64", (-1,) if rows else (1,))
        self.metadata = ModelMetadata("digits", "3", "sklearn", (spec,), (spec,))
        self.begun: list[list[bytes]] = []
        self._workers = workers
        self._under_way: list[Work] = []

    @property
    def free(self) -> bool:
        return self._workers.free > 0

    def start(self, calls: Sequence[Call], done: Done, more: More, wanted: Wanted) -> None:
        self.more, self.wanted = more, wanted
        self._workers.free -= 1
        self.begun.append([call.body for call in calls])
        self._under_way.append((calls, done))

    def end(self, *outcomes: Outcome) -> None:
        """End what was begun first, with its own bodies unless it is told."""
        calls, done = self._under_way.pop(0)
        self._workers.free += 1
        done(outcomes or [Reply(call.body) for call in calls])

    def close(self) -> None:
        pass


def call(body: bytes) -> Call:
    return Call(V2Codec(), body)


def dispatcher(places: int = 100, size: int = 1, delay_seconds: float = 0.0) -> Dispatcher:
    return Dispatcher(places, Batching(size, delay_seconds), Metrics(State()))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_requests_are_worked_on_in_turn_and_answered_with_their_own() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher()
        futures = [queue.submit(runner, call(body)) for body in (b"1", b"2", b"3")]
        assert (runner.begun, queue.waiting) == ([[b"1"]], 2)
        for _ in range(3):
            runner.end()
        assert runner.begun == [[b"1"], [b"2"], [b"3"]]
        assert [(await future).body for future in futures] == [b"1", b"2", b"3"]
        assert queue.waiting == 0

    run(test())


def test_what_came_while_the_workers_were_busy_is_one_batch() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(size=3)
        futures = [queue.submit(runner, call(b"%d" % number)) for number in range(6)]
        runner.end()
        runner.end()
        runner.end()
        assert runner.begun == [[b"0"], [b"1", b"2", b"3"], [b"4", b"5"]]
        assert [(await future).body for future in futures] == [b"%d" % number for number in range(6)]

    run(test())


@pytest.mark.parametrize(("rows", "begun"), [(True, [[b"1"], [b"2", b"3"]]), (False, [[b"1"], [b"2"]])])
def test_a_model_without_rows_gets_one_at_a_time(rows: bool, begun: list[list[bytes]]) -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1), rows=rows), dispatcher(size=8)
        for body in (b"1", b"2", b"3"):
            queue.submit(runner, call(body))
        runner.end()
        assert runner.begun == begun

    run(test())


def test_the_first_of_a_batch_waits_for_others_but_not_longer_than_the_delay() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(size=3, delay_seconds=0.1)
        loop = asyncio.get_running_loop()
        start = loop.time()
        queue.submit(runner, call(b"1"))
        queue.submit(runner, call(b"2"))
        assert runner.begun == []
        while not runner.begun:
            await asyncio.sleep(0.005)
        assert loop.time() - start >= 0.1
        assert runner.begun == [[b"1", b"2"]]

    run(test())


def test_a_full_batch_does_not_wait() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(size=2, delay_seconds=60)
        queue.submit(runner, call(b"1"))
        assert runner.begun == []
        queue.submit(runner, call(b"2"))
        assert runner.begun == [[b"1", b"2"]]

    run(test())


def test_a_batch_is_wanted_as_long_as_somebody_waits_for_one_of_it() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(size=2, delay_seconds=60)
        futures = [queue.submit(runner, call(body)) for body in (b"1", b"2")]
        wanted = [runner.wanted()]
        for future in futures:
            future.cancel()
            wanted.append(runner.wanted())
        assert wanted == [True, True, False]

    run(test())


def test_one_outcome_of_a_batch_is_not_another_s() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(size=3, delay_seconds=60)
        futures = [queue.submit(runner, call(body)) for body in (b"1", b"2", b"3")]
        runner.end(Reply(b"1"), InputError("wrong"), Reply(b"3"))
        answers = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Reply, InputError, Reply]

    run(test())


def test_places_are_for_those_that_wait_and_those_that_are_worked_on() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(places=2)
        futures = [queue.submit(runner, call(b"1")), queue.submit(runner, call(b"2"))]
        assert queue.saturated
        with pytest.raises(Saturated):
            queue.submit(runner, call(b"3"))
        runner.end()
        assert not queue.saturated
        futures.append(queue.submit(runner, call(b"4")))
        runner.end()
        runner.end()
        assert [(await future).body for future in futures] == [b"1", b"2", b"4"]

    run(test())


def test_l12_who_leaves_while_waiting_frees_its_place_and_is_not_worked_on() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(places=3)
        _, second, third = (queue.submit(runner, call(body)) for body in (b"1", b"2", b"3"))
        second.cancel()
        third.set_exception(TimeoutError())
        await asyncio.sleep(0)
        assert (queue.waiting, queue.saturated) == (0, False)
        fourth = queue.submit(runner, call(b"4"))
        runner.end()
        runner.end()
        assert runner.begun == [[b"1"], [b"4"]]
        assert (await fourth).body == b"4"
        assert isinstance(third.exception(), TimeoutError)

    run(test())


def test_l12_who_leaves_in_the_moment_its_turn_comes_is_not_worked_on() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(places=3, size=4)
        _, second, third = (queue.submit(runner, call(body)) for body in (b"1", b"2", b"3"))
        second.cancel()
        runner.end()  # before the event loop comes round
        assert runner.begun == [[b"1"], [b"3"]]
        runner.end()
        await third
        await asyncio.sleep(0)
        for body in (b"4", b"5", b"6"):  # each place is free, and free once
            queue.submit(runner, call(body))
        assert queue.saturated

    run(test())


def test_who_leaves_while_being_worked_on_keeps_its_place_to_the_end() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(places=1)
        queue.submit(runner, call(b"1")).cancel()
        await asyncio.sleep(0)
        assert queue.saturated
        runner.end()
        assert not queue.saturated

    run(test())


def test_two_models_take_turns_however_much_one_is_asked() -> None:
    async def test() -> None:
        workers = Workers(1)
        busy, calm = HandRunner(workers), HandRunner(workers)
        queue = dispatcher()
        for number in range(6):
            queue.submit(busy, call(b"%d" % number))
        queue.submit(calm, call(b"calm"))
        turns = []
        for _ in range(4):
            turns.append("busy" if busy._under_way else "calm")
            (busy if busy._under_way else calm).end()
        assert "calm" in turns[1:3]

    run(test())


def test_a_batch_that_waits_does_not_keep_another_model_waiting() -> None:
    async def test() -> None:
        workers = Workers(1)
        patient, single = HandRunner(workers), HandRunner(workers, rows=False)
        queue = dispatcher(size=4, delay_seconds=0.05)
        first = queue.submit(patient, call(b"1"))
        second = queue.submit(single, call(b"2"))
        while not single.begun:
            await asyncio.sleep(0.005)
            if patient.begun == [[b"1"]] and not first.done():
                patient.end()
        single.end()
        while not first.done():
            await asyncio.sleep(0.005)
            if patient.begun:
                patient.end()
        assert [(await future).body for future in (first, second)] == [b"1", b"2"]

    run(test())


def test_a_worker_that_is_done_is_given_what_waits_whoever_left_apart() -> None:
    async def test() -> None:
        runner, queue = HandRunner(Workers(1)), dispatcher(places=4)
        first, left, second, third = [queue.submit(runner, call(body)) for body in (b"1", b"2", b"3", b"4")]
        left.cancel()  # and is still in the queue: the event loop has had no turn
        calls, settled = runner.more() or pytest.fail("there is more")
        assert calls == []
        settled([])
        calls, done = runner.more() or pytest.fail("there is more")
        assert [call.body for call in calls] == [b"3"]
        done([Reply(b"three")])
        runner.end()  # the event loop gives the last one
        assert runner.begun == [[b"1"], [b"4"]]
        assert runner.more() is None
        runner.end()
        assert [(await future).body for future in (first, second, third)] == [b"1", b"three", b"4"]
        assert not queue.saturated
        for body in (b"5", b"6", b"7", b"8"):  # all four places are free again
            queue.submit(runner, call(body))
        assert queue.saturated

    run(test())


@pytest.mark.parametrize("size", [1, 2])
def test_a_worker_is_given_no_more_where_another_model_or_a_batch_has_its_turn(size: int) -> None:
    async def test() -> None:
        workers = Workers(1)
        one, other, queue = HandRunner(workers), HandRunner(workers), dispatcher(size=size)
        for runner in (one, one, other) if size == 1 else (one, one):
            queue.submit(runner, call(b"1"))
        assert one.more() is None

    run(test())


def test_threads_that_help_themselves_answer_each_request_once_and_with_its_own() -> None:
    async def test() -> None:
        spec = TensorSpec("x", "FP64", (-1,))
        handler = Handler(Path("handler.py"), lambda _f, _o: None, lambda _m, inputs: inputs, None, None)
        runner = ThreadRunner(LoadedModel(ModelMetadata("m", None, "p", (spec,), (spec,)), handler, None), Threads(4))
        queue = dispatcher(places=64)
        asked = 0

        async def client() -> None:
            nonlocal asked
            while asked < 5000:
                asked += 1
                number = asked
                tensor = {"name": "x", "datatype": "FP64", "shape": [1], "data": [number]}
                future = queue.submit(runner, call(json.dumps({"inputs": [tensor]}).encode()))
                if number % 10 == 0:
                    future.cancel()
                    continue
                answer = json.loads((await future).body)
                assert answer["outputs"][0]["data"] == [number]

        await asyncio.gather(*(client() for _ in range(32)))
        while runner._threads._free < 4:
            await asyncio.sleep(0.01)
        assert queue._taken == queue.waiting == 0

    run(test())
