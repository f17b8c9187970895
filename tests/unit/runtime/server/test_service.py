"""Admission, limits, time-outs and failures, whatever the protocol."""

import asyncio
import threading
import time
from typing import Any

import pytest

from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.http import REFUSED
from tests.unit.runtime.server.conftest import INFER, MakeServer, Server, tensor

GOOD = b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1]}]}'
SECRET = "/srv/secret/path and why"


def fail(_model: Any, _inputs: Any) -> Any:
    raise RuntimeError(SECRET)


@pytest.mark.parametrize(
    "predict",
    [
        fail,
        lambda _m, _i: None,
        lambda _m, _i: {},
        lambda _m, _i: {1: [1]},
        lambda _m, _i: {"y": [1j]},
        lambda _m, _i: {"y": b"\xff"},
        lambda _m, _i: exec("raise SystemExit(0)"),
    ],
)
def test_h10_a_handler_that_fails_is_500_with_an_id_and_no_details(
    make_server: MakeServer, predict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = make_server(predict).post(GOOD, headers={"X-Request-Id": "abc-1"})
    assert answer.status == 500
    assert answer.json == {"error": "the model failed on this request", "request_id": "abc-1"}
    assert answer.headers["x-request-id"] == "abc-1"
    assert "abc-1" in caplog.text


def test_the_log_tells_what_the_client_is_not_told(make_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    assert SECRET not in make_server(fail).post(GOOD).text
    assert SECRET in caplog.text


def test_a_request_id_that_could_forge_a_log_line_is_replaced(make_server: MakeServer) -> None:
    answer = make_server().post(GOOD, headers={"X-Request-Id": "a b"})
    assert len(answer.headers["x-request-id"]) == 32


def test_h4_a_body_over_the_limit_is_413_before_it_is_read(make_server: MakeServer) -> None:
    server = make_server(body_limit_bytes=len(GOOD))
    assert server.post(GOOD).status == 200
    assert server.post(GOOD + b" ").status == 413
    assert server.post(b"", headers={"Content-Length": str(len(GOOD) + 1)}).status == 413
    assert server.post(b"", headers={"Content-Length": "9" * 30}).status == 413
    chunked = asyncio.run(server.request("POST", INFER, [b" "] * (len(GOOD) + 1)))
    assert chunked.status == 413


def test_l6_bodies_that_arrive_together_have_so_much_memory_and_no_more(make_server: MakeServer) -> None:
    server = make_server(body_limit_bytes=len(GOOD), workers=1, queue=0)

    async def run() -> None:
        held = asyncio.Event()
        slow = asyncio.create_task(server.request("POST", INFER, [GOOD[:40], GOOD[40:]], pause=held))
        await asyncio.sleep(0.05)
        refused = await server.request("POST", INFER, [GOOD])
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        held.set()
        assert (await slow).status == 200
        assert (await server.request("POST", INFER, [GOOD])).status == 200

    asyncio.run(run())


def test_a_request_that_its_connection_refused_is_counted_as_what_the_client_was_told(make_server: MakeServer) -> None:
    server = make_server()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], REFUSED: (408, "the body took too long")}
    asyncio.run(server.app(scope, receive, send))
    assert 'status="408"} 1.0' in server.get("/metrics").text


class Slow:
    """A `predict` that waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, _model: Any, inputs: Any) -> Any:
        assert self.go.wait(10)
        return inputs


async def started(server: Server, count: int) -> None:
    while len(server.calls) < count:
        await asyncio.sleep(0.005)


def test_health_answers_while_every_worker_is_busy(make_server: MakeServer) -> None:
    slow = Slow()
    server = make_server(slow, workers=1)

    async def run() -> None:
        busy = asyncio.create_task(server.request("POST", INFER, [GOOD]))
        await started(server, 1)
        start = time.monotonic()
        assert (await server.request("GET", "/v2/health/ready", [b""])).status == 200
        assert time.monotonic() - start < 1
        slow.go.set()
        assert (await busy).status == 200

    asyncio.run(run())


def test_what_the_queue_cannot_hold_is_503_with_retry_after(make_server: MakeServer) -> None:
    slow = Slow()
    server = make_server(slow, workers=1, queue=1)

    async def run() -> None:
        taken = [asyncio.create_task(server.request("POST", INFER, [GOOD])) for _ in range(2)]
        await started(server, 1)
        refused = await server.request("POST", INFER, [GOOD])
        assert refused.status == 503
        assert refused.headers["retry-after"].isdigit()
        slow.go.set()
        assert [answer.status for answer in await asyncio.gather(*taken)] == [200, 200]
        assert (await server.request("POST", INFER, [GOOD])).status == 200

    asyncio.run(run())


def test_h10_a_prediction_that_hangs_is_504_and_others_are_answered(make_server: MakeServer) -> None:
    slow = Slow()
    server = make_server(lambda m, i: slow(m, i) if len(server.calls) == 1 else i, request_timeout_seconds=0.1)

    async def run() -> None:
        hanging = asyncio.create_task(server.request("POST", INFER, [GOOD]))
        await started(server, 1)
        assert (await server.request("POST", INFER, [GOOD])).status == 200
        assert (await hanging).status == 504
        slow.go.set()

    asyncio.run(run())


def test_h8_queued_work_of_a_client_that_is_gone_is_not_run(make_server: MakeServer) -> None:
    slow = Slow()
    server = make_server(slow, workers=1, queue=1)

    async def run() -> None:
        first = asyncio.create_task(server.request("POST", INFER, [GOOD]))
        await started(server, 1)
        gone = asyncio.Event()
        second = asyncio.create_task(server.request("POST", INFER, [GOOD], gone=gone))
        await asyncio.sleep(0.05)
        gone.set()
        await second
        third = asyncio.create_task(server.request("POST", INFER, [GOOD]))  # its place is free again
        await asyncio.sleep(0.05)
        slow.go.set()
        assert [(await task).status for task in (first, third)] == [200, 200]

    asyncio.run(run())
    assert len(server.calls) == 2


def test_a_handler_can_tell_the_client_what_is_wrong(make_server: MakeServer) -> None:
    def refuse(_model: Any, _inputs: Any) -> Any:
        raise InputError("rows must be sorted")

    answer = make_server(refuse).post({"inputs": [tensor()]})
    assert (answer.status, answer.json) == (400, {"error": "rows must be sorted"})


def test_a_path_is_answered_alike_each_time_it_is_asked(make_server: MakeServer) -> None:
    server = make_server()
    for _ in range(2):
        assert [server.post(GOOD).status, server.post(GOOD, INFER.replace("digits", "other")).status] == [200, 404]
        wrong, nowhere = server.get(INFER), server.get(INFER + "/more")
        assert (wrong.status, wrong.headers["allow"], nowhere.status) == (405, "POST", 404)
        assert [server.get("/v2", method).status for method in ("GET", "HEAD", "POST")] == [200, 200, 405]
