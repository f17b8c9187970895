"""Workers that are threads: all of them are there before a model is."""

import asyncio
import json
import threading
from typing import Any

import pytest

from mlimg.runtime.errors import LimitError
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.runners.threads import ThreadRunner, Threads
from tests.unit.runtime.server.conftest import INFER, MakeServer, tensor

HANDLER: Any = None
MODEL = LoadedModel(ModelMetadata("m", None, "python", (), ()), HANDLER, None)


def test_models_share_threads_that_are_started_once() -> None:
    before, threads = threading.active_count(), Threads(2)
    assert [ThreadRunner(MODEL, threads).free for _ in range(3)] == [True] * 3
    assert threading.active_count() == before + 2


def test_a_server_that_cannot_have_its_threads_does_not_become_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LimitError, match="2 threads"):
            ThreadRunner(MODEL, threads)
    assert ThreadRunner(MODEL, threads).free


def test_the_event_loop_stands_still_for_small_predictions_and_for_no_other(make_server: MakeServer) -> None:
    """Many are answered while it stands, in one turn; a prediction that hangs holds it for a moment alone."""
    hangs, go = threading.Event(), threading.Event()

    def predict(_model: Any, inputs: Any) -> Any:
        if hangs.is_set():
            assert go.wait(10)
        return inputs

    server = make_server(predict, workers=2)
    body = json.dumps({"inputs": [tensor()]}).encode()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            answers = await asyncio.gather(*(server.request("POST", INFER, [body]) for _ in range(8)))
            assert {answer.status for answer in answers} == {200}
        hangs.set()
        hanging = [asyncio.create_task(server.request("POST", INFER, [body])) for _ in range(4)]
        begun = loop.time()
        for _ in range(20):
            await asyncio.sleep(0)
        assert loop.time() - begun < 5
        assert not any(task.done() for task in hanging)
        assert (await server.request("GET", "/v2/health/ready", [b""])).status == 200
        go.set()
        assert {answer.status for answer in await asyncio.gather(*hanging)} == {200}

    asyncio.run(run())
