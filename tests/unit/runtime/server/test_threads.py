"""Workers that are threads: all of them are there before a model is."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from mlimg.runtime.errors import LimitError
from mlimg.runtime.server.leader import Leader
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.runners import threads
from mlimg.runtime.server.runners.threads import ThreadRunner, Threads
from tests.unit.runtime.server.conftest import INFER, Answer, MakeServer, Server, lead, tensor

HANDLER: Any = None
MODEL = LoadedModel(ModelMetadata("m", None, "python", (), ()), HANDLER, None)


def test_models_share_threads_that_are_started_once() -> None:
    before, two = workers(), Threads(2)
    assert [ThreadRunner(MODEL, two).free for _ in range(3)] == [True] * 3
    assert workers() == before + 2


def workers() -> int:
    """The threads that predict."""
    return sum(thread.name.startswith("predict-") for thread in threading.enumerate())


def test_a_server_that_cannot_have_its_threads_does_not_become_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    two = Threads(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LimitError, match="2 threads"):
            ThreadRunner(MODEL, two)
    assert ThreadRunner(MODEL, two).free


BODY = json.dumps({"inputs": [tensor()]}).encode()


async def ask(server: Server, count: int = 1) -> list[asyncio.Task[Answer]]:
    """Requests of one turn of the event loop, some turns later."""
    asked = [asyncio.create_task(server.request("POST", INFER, [BODY])) for _ in range(count)]
    for _ in range(8):
        await asyncio.sleep(0)
    return asked


@pytest.mark.usefixtures("patient")
def test_the_event_loop_s_thread_predicts_what_is_small(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_STILL_SECONDS", 10.0)
    predicting: set[int] = set()

    def predict(_model: Any, inputs: Any) -> Any:
        predicting.add(threading.get_ident())
        return inputs

    async def main(leader: Leader[Any]) -> None:
        asked = await ask(make_server(predict, workers=2, pause=leader.pause), count=4)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4
        assert predicting == {threading.get_ident()}

    lead(main)


def test_what_it_has_no_time_for_is_the_workers_(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_STILL_SECONDS", 0.0)
    predicting: set[int] = set()

    def predict(_model: Any, inputs: Any) -> Any:
        predicting.add(threading.get_ident())
        return inputs

    async def main(leader: Leader[Any]) -> None:
        asked = await ask(make_server(predict, workers=2, pause=leader.pause), count=4)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4
        assert threading.get_ident() not in predicting

    lead(main)


def test_long_predictions_are_the_workers_(make_server: MakeServer) -> None:
    predicting: list[int] = []

    def predict(_model: Any, inputs: Any) -> Any:
        time.sleep(0.003)
        predicting.append(threading.get_ident())
        return inputs

    async def main(leader: Leader[Any]) -> None:
        server = make_server(predict, workers=2, pause=leader.pause)
        for _ in range(20):
            await asyncio.gather(*await ask(server))
        assert threading.get_ident() not in predicting[-3:]

    lead(main)


def test_a_prediction_that_hangs_holds_nothing_up(make_server: MakeServer) -> None:
    go, taken = threading.Event(), threading.Event()

    def predict(_model: Any, inputs: Any) -> Any:
        taken.set()
        assert go.wait(10)
        return inputs

    async def main(leader: Leader[Any]) -> None:
        server = make_server(predict, workers=2, pause=leader.pause)
        (hanging,) = await ask(server)
        assert await asyncio.to_thread(taken.wait, 10)
        assert not hanging.done()
        assert (await server.request("GET", "/v2/health/ready", [b""])).status == 200
        go.set()
        assert (await hanging).status == 200

    lead(main)


def test_of_one_turn_s_requests_none_waits_beside_a_thread_that_has_nothing_to_do(make_server: MakeServer) -> None:
    together = threading.Barrier(2, timeout=10)

    def predict(_model: Any, inputs: Any) -> Any:
        together.wait()
        return inputs

    async def main(leader: Leader[Any]) -> None:
        asked = await ask(make_server(predict, workers=2, pause=leader.pause), count=2)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200, 200]

    lead(main)


def test_a_model_whose_predictions_hang_is_the_workers_before_they_end(make_server: MakeServer) -> None:
    go = threading.Event()
    names: list[str] = []

    def predict(_model: Any, inputs: Any) -> Any:
        names.append(threading.current_thread().name)
        assert go.wait(10)
        return inputs

    async def main(leader: Leader[Any]) -> None:
        server, asked = make_server(predict, workers=4, pause=leader.pause), []
        for number in range(1, 5):
            asked += await ask(server)
            while len(names) < number:
                await asyncio.sleep(0.001)
        go.set()
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4

    lead(main)
    assert names[:2] == ["event-loop"] * 2
    assert all(name.startswith("predict-") for name in names[2:])
