"""The protocol over the real application. Row H1 is a corpus: whatever is sent, the status is never 5xx."""

import json
import time
from typing import Any

import numpy as np
import pytest

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.state import ModelState
from mlimg.runtime.server.tensors import TensorSpec
from tests.unit.runtime.server.conftest import INFER, MakeServer, tensor

SPEC = TensorSpec("x", "FP64", (-1, 2))
GOOD = {"inputs": [tensor()]}


def add(_model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"sum": inputs["x"].sum(axis=1), "label": np.array(["a", "b"])}


def test_a_request_is_answered(make_server: MakeServer) -> None:
    answer = make_server(add, (SPEC,)).post({"id": "42", "parameters": {"priority": 1}, **GOOD})
    assert answer.status == 200
    assert answer.json == {
        "model_name": "digits",
        "model_version": "3",
        "id": "42",
        "outputs": [
            {"name": "sum", "datatype": "FP64", "shape": [2], "data": [3.0, 7.0]},
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
        ],
    }


def test_a_request_selects_outputs(make_server: MakeServer) -> None:
    answer = make_server(add, (SPEC,)).post(
        {**GOOD, "outputs": [{"name": "label", "parameters": {"binary_data": False}}]}
    )
    assert [output["name"] for output in answer.json["outputs"]] == ["label"]


# H1, H2, H3, H6: each body is one step from GOOD, which passes.
BAD: dict[str, object] = {
    "shape and data differ": {"inputs": [tensor(data=[1, 2, 3])]},
    "negative dimension": {"inputs": [tensor(shape=[-1, 2])]},
    "zero dimension": {"inputs": [tensor(shape=[0, 2], data=[])]},
    "2^40 x 2^40": {"inputs": [tensor(shape=[2**40, 2**40])]},
    "dimension of 1000 digits": {"inputs": [tensor(shape=[10**1000, 2])]},
    "another number of columns": {"inputs": [tensor(shape=[4, 1])]},
    "no inputs": {},
    "empty inputs": {"inputs": []},
    "inputs are an object": {"inputs": {"x": tensor()}},
    "inputs are null": {"inputs": None},
    "an input is no object": {"inputs": ["x"]},
    "257 inputs": {"inputs": [tensor(name=f"x{n}") for n in range(257)]},
    "text in FP64": {"inputs": [tensor(data=["1", "2", "3", "4"])]},
    "true in FP64": {"inputs": [tensor(data=[True, 2, 3, 4])]},
    "object in FP64": {"inputs": [tensor(data=[{}, 2, 3, 4])]},
    "unknown tensor": {"inputs": [tensor(), tensor(name="y")]},
    "tensor twice": {"inputs": [tensor(), tensor()]},
    "tensor missing": {"inputs": [tensor(name="y")]},
    "no name": {"inputs": [tensor(name=None)]},
    "name is a number": {"inputs": [tensor(name=1)]},
    "name of 2000 characters": {"inputs": [tensor(name="x" * 2000)]},
    "no datatype": {"inputs": [tensor(datatype=None)]},
    "unknown datatype": {"inputs": [tensor(datatype="FP65")]},
    "BYTES for FP64": {"inputs": [tensor(datatype="BYTES", data=["a", "b", "c", "d"])]},
    "no shape": {"inputs": [tensor(shape=None)]},
    "no data": {"inputs": [tensor(data=None)]},
    "binary data without the header": {"inputs": [tensor(data=None, parameters={"binary_data_size": 32})]},
    "shared memory": {"inputs": [tensor(data=None, parameters={"shared_memory_region": "/x"})]},
    "binary output is 1": {**GOOD, "outputs": [{"name": "sum", "parameters": {"binary_data": 1}}]},
    "binary outputs is a text": {**GOOD, "parameters": {"binary_data_output": "true"}},
    "classification": {**GOOD, "outputs": [{"name": "sum", "parameters": {"classification": 3}}]},
    "output in shared memory": {**GOOD, "outputs": [{"name": "sum", "parameters": {"shared_memory_region": "/x"}}]},
    "parameters are a list": {**GOOD, "parameters": []},
    "unknown output": {**GOOD, "outputs": [{"name": "sun"}]},
    "output twice": {**GOOD, "outputs": [{"name": "sum"}, {"name": "sum"}]},
    "outputs are null": {**GOOD, "outputs": None},
    "id is a number": {**GOOD, "id": 1},
    "NaN": json.dumps({"inputs": [tensor(data=[float("nan"), 2, 3, 4])]}).encode(),
    "Infinity": json.dumps({"inputs": [tensor(data=[float("-inf"), 2, 3, 4])]}).encode(),
    "1e999": json.dumps(GOOD).replace("[1,", "[1e999,").encode(),
    "integer of 5000 digits": json.dumps(GOOD).replace("[1,", f"[{'9' * 5000},").encode(),
    "integer of 400 digits": json.dumps(GOOD).replace("[1,", f"[{'9' * 400},").encode(),
    "depth 100000": b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "depth 100000, open": b"[" * 100_000,
    "data of depth 500": json.dumps({"inputs": [tensor(data=None)]})[:-3].encode()
    + b', "data": '
    + b"[" * 500
    + b"1"
    + b"]" * 500
    + b"}]}",
    "key twice": b'{"inputs": [], ' + json.dumps(GOOD).encode()[1:],
    "lone surrogate in id": b'{"id": "\\ud800", ' + json.dumps(GOOD).encode()[1:],
    "lone surrogate in a name": json.dumps({"inputs": [tensor(name="\ud800")]}).encode(),
    "empty body": b"",
    "half a body": json.dumps(GOOD).encode()[:-1],
    "two values": json.dumps(GOOD).encode() * 2,
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "Latin-1": b'{"id": "\xe4"}',
    "a list": b"[]",
    "a number": b"1",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_h1_a_bad_request_is_answered_with_400_and_one_line(make_server: MakeServer, body: object) -> None:
    server = make_server(add, (SPEC,))
    start = time.monotonic()
    answer = server.post(body)
    assert time.monotonic() - start < 1
    assert answer.status == 400
    assert set(answer.json) == {"error"}
    error = answer.json["error"]
    assert error
    assert error.isprintable()
    assert len(error) < 500
    assert "Traceback" not in error
    assert ".py" not in error
    assert server.post(GOOD).status == 200, "the server answers as before"


def test_h1_nothing_bad_reaches_the_model(make_server: MakeServer) -> None:
    server = make_server(add, (SPEC,), (TensorSpec("sum", "FP64", (-1,)), TensorSpec("label", "BYTES", (-1,))))
    for body in BAD.values():
        server.post(body)
    assert server.calls == []


def test_h2_missing_numbers_go_in_and_come_out_as_null(make_server: MakeServer) -> None:
    answer = make_server(lambda _m, i: {"y": i["x"] * np.inf}, (SPEC,)).post(
        {"inputs": [tensor(data=[None, 1, -1, 2])]}
    )
    assert answer.json["outputs"][0]["data"] == [None, None, None, None]


def test_a_model_of_columns_takes_them_as_one_table_too(make_server: MakeServer) -> None:
    columns = tuple(TensorSpec(name, "FP64", (-1,)) for name in ("b", "a"))
    server = make_server(lambda _m, i: {"y": i["b"] - i["a"]}, columns)
    separate = server.post({"inputs": [tensor(name=n, shape=[2], data=d) for n, d in (("a", [1, 2]), ("b", [5, 7]))]})
    table = server.post({"inputs": [tensor(name="input", data=[5, 1, 7, 2])]})
    assert separate.json["outputs"] == table.json["outputs"]
    assert table.json["outputs"][0]["data"] == [4, 5]
    assert server.post({"inputs": [tensor(name="input", shape=[1, 4])]}).status == 400


def test_metadata_tells_model_and_server(make_server: MakeServer) -> None:
    server = make_server(add, (SPEC,), (TensorSpec("sum", None, (-1,), {"classes": ["a"]}),))
    expected = {
        "name": "digits",
        "versions": ["3"],
        "platform": "sklearn",
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
        "outputs": [{"name": "sum", "shape": [-1], "parameters": {"classes": ["a"]}}],
    }
    assert server.get("/v2/models/digits").json == expected
    assert server.get("/v2/models/digits/versions/3").json == expected
    assert server.get("/v2").json == {"name": "mlimg-sklearn", "version": "1", "extensions": ["binary_tensor_data"]}


def test_the_index_lists_the_model(make_server: MakeServer) -> None:
    server = make_server()
    entry = {"name": "digits", "version": "3", "state": "READY", "reason": ""}
    assert server.post(b"", "/v2/repository/index").json == [entry]
    assert server.post({"ready": True}, "/v2/repository/index").json == [entry]
    assert server.post(b"{", "/v2/repository/index").status == 400
    assert server.post(b" " * (2**20 + 1), "/v2/repository/index").status == 413


def test_each_of_several_models_has_a_readiness_of_its_own(make_server: MakeServer) -> None:
    server = make_server(add, (SPEC,))
    lost, coming = ModelState("lost"), ModelState("coming")
    server.state.models = (*server.state.models, lost, coming)
    lost.fail(ModelError("it is \x1b broken"))
    assert server.post(GOOD).status == 200
    assert server.get("/v2/models/digits/ready").status == 200
    assert server.get("/v2/health/ready").status == 503  # one is still on its way
    for path in ("/v2/models/lost", "/v2/models/lost/ready", "/v2/models/lost/versions/3/ready"):
        answer = server.get(path)
        assert (answer.status, answer.json["error"]) == (503, "the model failed: it is \\x1b broken")
    assert server.post(GOOD, "/v2/models/lost/infer").status == 503
    assert server.get("/v2/models/coming").json["error"] == "the model is not ready: starting"
    assert server.get("/v2/models/unknown").status == 503  # the name may come with a manifest
    coming.fail(ModelError("late"))
    assert server.get("/v2/models/unknown").status == 404
    ready = server.get("/v2/health/ready")
    assert (ready.status, [model["ready"] for model in ready.json["models"]]) == (200, [True, False, False])
    entries = server.post(b"", "/v2/repository/index").json
    assert [(entry["name"], entry["state"], entry["reason"]) for entry in entries] == [
        ("digits", "READY", ""),
        ("lost", "UNAVAILABLE", "it is \\x1b broken"),
        ("coming", "UNAVAILABLE", "late"),
    ]
    assert len(server.post({"ready": True}, "/v2/repository/index").json) == 1


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v2/models/digits/versions/3"])
def test_a_model_is_ready_and_infers_with_and_without_version(make_server: MakeServer, path: str) -> None:
    server = make_server(add, (SPEC,))
    assert server.get(f"{path}/ready").json == {"name": "digits", "ready": True}
    assert server.post(GOOD, f"{path}/infer").status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/digit"),
        ("GET", "/v2/models/digits/versions/4"),
        ("POST", "/v2/models/digit/infer"),
        ("POST", "/v2/models/digits/versions/4/infer"),
        ("GET", "/v2/models/..%2f..%2fetc/ready"),
        ("GET", "/v2/models/../../etc/passwd"),
        ("POST", "/v2/repository/models/digits/load"),
        ("POST", "/v2/repository/models/digits/unload"),
        ("GET", "/v2/"),
    ],
)
def test_h15_what_is_not_served_is_404(make_server: MakeServer, method: str, path: str) -> None:
    answer = make_server().get(path, method)
    assert answer.status == 404
    assert set(answer.json) == {"error"}


def test_another_method_is_405(make_server: MakeServer) -> None:
    assert make_server().get(INFER).status == 405
    assert make_server().get("/v2", "DELETE").status == 405
