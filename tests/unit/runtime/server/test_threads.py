"""Workers that are threads: all of them are there before a model is."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from mlimg.runtime.errors import LimitError
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.runners import threads
from mlimg.runtime.server.runners.threads import ThreadRunner, Threads
from tests.unit.runtime.server.conftest import INFER, Answer, MakeServer, Server, tensor

HANDLER: Any = None
MODEL = LoadedModel(ModelMetadata("m", None, "python", (), ()), HANDLER, None)


def test_models_share_threads_that_are_started_once() -> None:
    before, two = threading.active_count(), Threads(2)
    assert [ThreadRunner(MODEL, two).free for _ in range(3)] == [True] * 3
    assert threading.active_count() == before + 2


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


def test_the_event_loop_stands_still_for_small_predictions(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_STILL_SECONDS", 10.0)

    def predict(_model: Any, inputs: Any) -> Any:
        time.sleep(0.0005)  # meanwhile a loop that goes on takes some hundred turns
        return inputs

    async def run() -> None:
        asked = await ask(make_server(predict, workers=2), count=4)
        assert [task.done() and task.result().status for task in asked] == [200] * 4

    asyncio.run(run())


def test_it_does_so_for_a_moment_and_not_for_long_ones(make_server: MakeServer) -> None:
    go, taken = threading.Event(), threading.Event()

    def predict(_model: Any, inputs: Any) -> Any:
        taken.set()
        assert go.wait(10)
        return inputs

    async def run() -> None:
        server = make_server(predict, workers=2)
        (hanging,) = await ask(server)
        assert await asyncio.to_thread(taken.wait, 10)
        assert not hanging.done()
        assert (await server.request("GET", "/v2/health/ready", [b""])).status == 200
        go.set()
        assert (await hanging).status == 200

    asyncio.run(run())


def test_of_one_turn_s_requests_none_waits_beside_a_thread_that_has_nothing_to_do(make_server: MakeServer) -> None:
    together = threading.Barrier(2, timeout=10)

    def predict(_model: Any, inputs: Any) -> Any:
        together.wait()
        return inputs

    async def run() -> None:
        asked = await ask(make_server(predict, workers=2), count=2)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200, 200]

    asyncio.run(run())
