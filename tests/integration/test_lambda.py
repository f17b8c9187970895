"""Invocations by Lambda's runtime API, answered by real server processes."""

import base64
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.server.lambda_runtime import Loop
from tests.support.lambda_api import LambdaApi, lambda_api
from tests.support.servers import running, server_folder

HANDLER = """\
import os, time
import numpy as np

def load(model_dir, options):
    time.sleep(float(options.get("seconds", 0)))

def predict(model, inputs):
    if "home" in inputs:
        return {"home": np.array([os.environ["HOME"], os.environ["TMPDIR"]])}
    return inputs
"""
ROWS = {"instances": [[1.5, 2]]}
ANSWER = {"predictions": [[1.5, 2.0]]}


@contextmanager
def started(folder: Path, **options: Any) -> Iterator[tuple[dict[str, str], LambdaApi]]:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"1")
    server = server_folder(folder / "server", HANDLER, options)
    with lambda_api() as api:
        yield {"MLIMG_MODEL_DIR": str(folder / "model"), "MLIMG_SERVER_DIR": str(server)}, api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaApi]:
    """A running function, which ends when told; its folders are those of the image, which cannot be written to."""
    with started(tmp_path_factory.mktemp("function")) as (environ, api):
        image = {"HOME": "/cache", "TMPDIR": "/cache", "AWS_LAMBDA_RUNTIME_API": api.address}
        with running({**environ, **image}) as server:
            yield api
            server.signal(signal.SIGTERM)
            assert server.end()[0] == 0


def test_a_function_url_is_answered(api: LambdaApi) -> None:
    answer = api.fetch("/v1/models/model:predict", json.dumps(ROWS), headers={"content-type": "application/json"})
    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, False)
    assert json.loads(answer["body"]) == ANSWER
    assert answer["headers"]["x-request-id"].startswith("invocation-")
    assert "content-length" not in answer["headers"]


def test_a_request_of_bytes_is_answered_in_bytes(api: LambdaApi) -> None:
    head = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }
    text, values = json.dumps(head).encode(), b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    answer = api.fetch(
        "/v2/models/model/infer",
        base64.b64encode(text + values).decode(),
        headers={"inference-header-content-length": str(len(text))},
        isBase64Encoded=True,
    )
    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, True), answer
    assert base64.b64decode(answer["body"]).endswith(values)


def test_a_stage_is_not_part_of_the_path(api: LambdaApi) -> None:
    context = {"stage": "v2", "http": {"method": "GET"}}
    assert api.fetch("/v2/v2/models/model", requestContext=context)["statusCode"] == 200
    assert api.fetch("/v2/models/model", method="GET")["statusCode"] == 200
    assert api.fetch("/v2x/models/model", requestContext=context)["statusCode"] == 404


def test_a_refusal_is_the_answer(api: LambdaApi) -> None:
    answer = api.fetch("/v1/models/model:predict", "{}")
    assert answer["statusCode"] == 400
    assert "instances" in json.loads(answer["body"])["error"]


def test_a_direct_invocation_is_answered_by_what_it_holds(api: LambdaApi) -> None:
    assert api.invoke(ROWS) == ("response", ANSWER)
    assert api.invoke(ROWS["instances"]) == ("response", ANSWER)
    kind, told = api.invoke({"instances": []})
    assert (kind, told["errorType"]) == ("error", "ValueError")
    assert "at least one" in told["errorMessage"]


@pytest.mark.parametrize("event", [{"requestContext": {"http": {}}}, {"requestContext": {"http": {"method": "A B"}}}])
def test_an_event_that_makes_no_sense_costs_itself_alone(api: LambdaApi, event: dict[str, Any]) -> None:
    assert api.invoke(event)[0] == "error"
    assert api.invoke({"rawPath": "/v2\r\nx: y", "headers": {"a": "b\r\nc: d"}, **event})[0] == "error"
    assert api.invoke(ROWS) == ("response", ANSWER)


def test_a_handler_has_the_one_folder_that_can_be_written(api: LambdaApi) -> None:
    assert api.invoke({"inputs": [{"name": "home", "datatype": "FP64", "shape": [1], "data": [1]}]})[1]["outputs"][0][
        "data"
    ] == ["/tmp", "/tmp"]


def test_a_server_ends_when_the_runtime_api_is_gone(tmp_path: Path) -> None:
    with started(tmp_path) as (environ, _), running({**environ, "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9"}) as server:
        assert "runtime API" in server.end()[1]


def test_a_slow_start_goes_on_in_the_first_invocation(tmp_path: Path) -> None:
    with started(tmp_path, seconds=2) as (environ, api), running(environ) as server:
        while server.ready() is None:
            time.sleep(0.02)
        loop = Loop(api.address, f"127.0.0.1:{server.port}", 0.2)
        threading.Thread(target=loop.run, daemon=True).start()
        while not api.asked_at:
            time.sleep(0.02)
        assert server.ready() == 503
        assert api.invoke(ROWS) == ("response", ANSWER)
