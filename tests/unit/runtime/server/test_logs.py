"""The log of requests, in text and as JSON."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from mlimg.runtime.errors import SpecError
from mlimg.runtime.server import logs
from tests.unit.runtime.server.conftest import MakeServer, tensor
from tests.unit.runtime.server.test_tracing import ID, TRACEPARENT

HEADERS = {"X-Request-Id": "abc-1", "Traceparent": TRACEPARENT}


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """A function that reads what was logged since, one object a line."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_a_request_is_a_line_with_all_that_is_known_of_it(make_server: MakeServer, lines: Any) -> None:
    server = make_server(log_requests=True)
    logs.set_up({"LOG_FORMAT": "json"})
    assert server.post({"inputs": [tensor()]}, headers=HEADERS).status == 200
    (line,) = lines()
    assert line.pop("seconds") >= 0
    assert line.pop("time").endswith("+00:00")
    assert len(line.pop("span_id")) == 16
    assert line.pop("message").startswith("POST /v2/models/digits/infer 200 ")
    assert line == {
        "level": "info",
        "logger": "mlimg.runtime.server.logs",
        "request_id": "abc-1",
        "trace_id": ID,
        "method": "POST",
        "path": "/v2/models/digits/infer",
        "status": 200,
        "model": "digits",
    }


def test_probes_are_not_logged_and_requests_only_where_asked_for(make_server: MakeServer, lines: Any) -> None:
    asked, quiet = make_server(log_requests=True), make_server()
    logs.set_up({"LOG_FORMAT": "json"})
    assert asked.get("/v2/health/ready").status == quiet.get("/v2").status == 200
    assert lines() == []
    assert asked.get("/v2").status == 200
    assert len(lines()) == 1


def test_what_failed_is_told_with_its_request(make_server: MakeServer, lines: Any) -> None:
    server = make_server(lambda _m, _i: 1 / 0)
    logs.set_up({"LOG_FORMAT": "json"})
    answer = server.post({"inputs": [tensor()]}, headers=HEADERS)
    assert answer.status == 500
    (line,) = lines()
    assert (line["level"], line["request_id"], line["trace_id"]) == ("error", "abc-1", ID)
    assert "ZeroDivisionError" in line["error"]
    assert "traceback" not in line


def test_a_path_cannot_forge_a_line(make_server: MakeServer, lines: Any) -> None:
    server = make_server(log_requests=True)
    logs.set_up({"LOG_FORMAT": "json"})
    assert server.get('/v2\n{"level": "error"}').status == 404
    (line,) = lines()
    assert line["path"] == '/v2\n{"level": "error"}'


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SpecError, match="LOG_FORMAT"):
        logs.set_up({"LOG_FORMAT": "xml"})
