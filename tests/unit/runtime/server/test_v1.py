"""KServe V1 over the real application: rows in, predictions out, whatever a model's inputs are."""

import math
from typing import Any

import numpy as np
import pytest

from mlimg.runtime.server.tensors import TensorSpec
from tests.unit.runtime.server.conftest import MakeServer

PREDICT = "/v1/models/digits:predict"
MATRIX = (TensorSpec("x", "FP64", (-1, 2)),)
TEXTS = (TensorSpec("text", "BYTES", (-1,)),)
COLUMNS = (TensorSpec("age", "INT64", (-1,)), TensorSpec("city", "BYTES", (-1, 1)))
PERSON = {"age": 7, "city": "Bonn"}


def echo(_model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs


def add(_model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"sum": inputs["x"].sum(axis=1)}


def test_rows_are_answered_by_a_prediction_each(make_server: MakeServer) -> None:
    answer = make_server(add, MATRIX).post({"instances": [[1, 2], [3, 4.5]]}, PREDICT)
    assert (answer.status, answer.json) == (200, {"predictions": [3.0, 7.5]})


@pytest.mark.parametrize(
    ("inputs", "instances", "predictions"),
    [
        (TEXTS, ["a", "ü"], ["a", "ü"]),
        (TEXTS, [["a"], ["b"]], ["a", "b"]),
        (COLUMNS, [PERSON, {"city": "Ulm", "age": 8}], [{"age": 7, "city": ["Bonn"]}, {"age": 8, "city": ["Ulm"]}]),
        (COLUMNS, [[7, "Bonn"]], [{"age": 7, "city": ["Bonn"]}]),
        ((TensorSpec("image", "UINT8", (-1, 2, 2)),), [[[1, 2], [3, 4]]], [[[1, 2], [3, 4]]]),
        ((), [[1, 2]], [[1, 2]]),
        ((), ["a"], ["a"]),
        ((), [True], [True]),
        ((), [1, 2.5, None], [1.0, 2.5, None]),
        ((), [{"a": 1, "b": "x"}], [{"a": 1, "b": "x"}]),
    ],
)
def test_a_model_takes_rows_as_its_inputs_are(
    make_server: MakeServer, inputs: tuple[TensorSpec, ...], instances: list[Any], predictions: list[Any]
) -> None:
    answer = make_server(echo, inputs).post({"instances": instances}, PREDICT)
    assert (answer.status, answer.json) == (200, {"predictions": predictions}), answer.text
    assert make_server(echo, inputs).post({"inputs": instances}, PREDICT).json == answer.json


def test_inputs_may_be_columns(make_server: MakeServer) -> None:
    answer = make_server(echo, COLUMNS).post({"inputs": {"age": [7], "city": ["Bonn"]}}, PREDICT)
    assert answer.json == {"predictions": [{"age": 7, "city": ["Bonn"]}]}


def test_h2_what_is_no_number_is_null(make_server: MakeServer) -> None:
    server = make_server(lambda _model, _inputs: {"y": np.array([[1.0, math.nan], [math.inf, -math.inf]])}, MATRIX)
    assert server.post({"instances": [[1, None], [3, 4]]}, PREDICT).json == {"predictions": [[1.0, None], [None, None]]}


# H1, H3: each is one step from what passes above.
BAD: dict[str, tuple[tuple[TensorSpec, ...], Any]] = {
    "no instances": (MATRIX, {}),
    "both": (MATRIX, {"instances": [[1, 2]], "inputs": [[1, 2]]}),
    "empty": (MATRIX, {"instances": []}),
    "empty rows": (MATRIX, {"instances": [[]]}),
    "a number": (MATRIX, {"instances": 1}),
    "columns as instances": (COLUMNS, {"instances": {"age": [7], "city": ["Bonn"]}}),
    "a list as body": (MATRIX, [[1, 2]]),
    "another number of values": (MATRIX, {"instances": [[1, 2, 3]]}),
    "ragged": (MATRIX, {"instances": [[1, 2], [3]]}),
    "a row that is a number": (MATRIX, {"instances": [[1, 2], 3]}),
    "a number that is a row": (MATRIX, {"instances": [1, [2]]}),
    "too deep": (MATRIX, {"instances": [[[1, 2]]]}),
    "a text for a number": (MATRIX, {"instances": [[1, "2"]]}),
    "true for a number": (MATRIX, {"instances": [[1, True]]}),
    "an object for a number": (MATRIX, {"instances": [[1, {}]]}),
    "a number for a text": (TEXTS, {"instances": [1]}),
    "half for a whole number": (COLUMNS, {"instances": [{**PERSON, "age": 7.5}]}),
    "too large": (COLUMNS, {"instances": [{**PERSON, "age": 2**63}]}),
    "a column is missing": (COLUMNS, {"instances": [{"age": 7}]}),
    "a column too many": (COLUMNS, {"instances": [{**PERSON, "sex": "f"}]}),
    "rows of other columns": (COLUMNS, {"instances": [PERSON, {"age": 7}]}),
    "an object and a list": (COLUMNS, {"instances": [PERSON, [7, "Bonn"]]}),
    "rows of other lengths": (COLUMNS, {"instances": [[7, "Bonn"], [7]]}),
    "a column that is no list": (COLUMNS, {"inputs": {"age": 7, "city": ["Bonn"]}}),
    "257 unknown columns": ((), {"instances": [{str(number): 1 for number in range(257)}]}),
    "no columns": ((), {"instances": [{}]}),
    "mixed": ((), {"instances": [1, "a"]}),
    "a column twice": (COLUMNS, b'{"instances": [{"age": 7, "age": 7, "city": "Bonn"}]}'),
    "NaN": (MATRIX, b'{"instances": [[1, NaN]]}'),
    "10 000 levels": (MATRIX, b'{"instances": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    "40 levels": ((), b'{"instances": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}"),
    "a lone surrogate": (TEXTS, b'{"instances": ["\\ud800"]}'),
}


@pytest.mark.parametrize(("inputs", "body"), BAD.values(), ids=BAD.keys())
def test_h1_a_bad_request_is_400(make_server: MakeServer, inputs: tuple[TensorSpec, ...], body: Any) -> None:
    server = make_server(echo, inputs)
    answer = server.post(body, PREDICT)
    assert answer.status == 400, answer.text
    assert answer.json["error"].isprintable()
    assert not server.calls


def test_outputs_that_are_not_of_as_many_rows_are_for_v2(make_server: MakeServer) -> None:
    server = make_server(lambda _model, _inputs: {"a": np.zeros(2), "b": np.zeros(3)}, MATRIX)
    answer = server.post({"instances": [[1, 2]]}, PREDICT)
    assert answer.status == 400
    assert "V2" in answer.json["error"]


def test_bytes_that_are_no_text_fail_the_model(make_server: MakeServer) -> None:
    server = make_server(lambda _model, _inputs: {"a": np.array([b"\xff"], np.object_)}, MATRIX)
    assert server.post({"instances": [[1, 2]]}, PREDICT).status == 500


def test_models_are_listed_and_tell_whether_they_are_ready(make_server: MakeServer) -> None:
    server = make_server(echo, MATRIX)
    assert server.get("/v1/models").json == {"models": ["digits"]}
    assert server.get("/v1/models/digits").json == {"name": "digits", "ready": True}
    assert server.get("/v1/models/other").status == 404
    assert server.post({"instances": [[1, 2]]}, "/v1/models/other:predict").status == 404
    assert server.post({"instances": [[1, 2]]}, "/v1/models/digits:explain").status in (404, 405)
