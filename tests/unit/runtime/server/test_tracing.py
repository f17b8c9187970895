"""Which trace a request joins, and what a handler that calls on passes along."""

from typing import Any

import pytest

from mlimg.runtime.server import tracing
from mlimg.runtime.server.tracing import RequestContext, Trace
from tests.unit.runtime.server.conftest import MakeServer, tensor

ID, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{ID}-{PARENT}-01"


@pytest.mark.parametrize("traceparent", [TRACEPARENT, f"00-{ID}-{PARENT}-00", f"cc-{ID}-{PARENT}-01-what-comes-later"])
def test_a_span_of_our_own_is_in_the_clients_trace(traceparent: str) -> None:
    trace = Trace.join(traceparent, "vendor=1")
    assert trace is not None
    version, trace_id, span_id, flags = trace.traceparent.split("-")
    assert (version, trace_id, flags) == ("00", ID, traceparent[53:55])
    assert span_id not in (PARENT, "0" * 16)
    assert trace.headers() == {"traceparent": trace.traceparent, "tracestate": "vendor=1"}


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        TRACEPARENT.upper(),
        f"{TRACEPARENT}-more",
        f"ff-{ID}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID}-{PARENT}-1",
        f" {TRACEPARENT}",
    ],
)
def test_what_is_malformed_is_as_if_it_had_not_come(traceparent: str) -> None:
    assert Trace.join(traceparent, "") is None


def test_a_state_that_is_malformed_is_left_out() -> None:
    trace = Trace.join(TRACEPARENT, "a\nb")
    assert trace is not None
    assert trace.headers().keys() == {"traceparent"}


def test_a_handler_and_the_client_are_told_the_trace(make_server: MakeServer) -> None:
    seen: list[RequestContext | None] = []

    def predict(_model: Any, inputs: Any) -> Any:
        seen.append(tracing.current())
        return inputs

    server = make_server(predict)
    answer = server.post({"inputs": [tensor()]}, headers={"Traceparent": TRACEPARENT, "X-Request-Id": "abc"})
    (context,) = seen
    assert context is not None
    assert context.request_id == "abc"
    assert context.trace is not None
    assert answer.headers["traceparent"] == context.trace.traceparent
    assert "traceparent" not in server.post({"inputs": [tensor()]}).headers
    assert seen[1] is not None
    assert seen[1].trace is None
