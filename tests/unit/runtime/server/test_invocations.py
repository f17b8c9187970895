"""The routes of SageMaker, Vertex AI and Azure ML over the real application."""

import math
from typing import Any

import numpy as np
import pytest

from mlimg.runtime.errors import SpecError
from mlimg.runtime.server.settings import PlatformRoutes, Settings
from mlimg.runtime.server.tensors import TensorSpec
from tests.unit.runtime.server.conftest import MakeServer, tensor
from tests.unit.runtime.server.test_v1 import COLUMNS, MATRIX, TEXTS, add, echo

V2 = {"id": "7", "inputs": [tensor()]}
CSV = {"Content-Type": "text/csv; charset=utf-8"}
AS_CSV = {"Accept": "text/csv"}


@pytest.mark.parametrize("path", ["/invocations", "/score"])
def test_the_body_tells_what_it_is(make_server: MakeServer, path: str) -> None:
    server = make_server(add, MATRIX)
    for body in ({"instances": [[1, 2], [3, 4]]}, [[1, 2], [3, 4]]):
        assert server.post(body, path).json == {"predictions": [3.0, 7.0]}
    answer = server.post(V2, path).json
    assert (answer["id"], answer["outputs"][0]["data"]) == ("7", [3.0, 7.0])


@pytest.mark.parametrize(
    ("inputs", "body", "predictions"),
    [
        (MATRIX, "1,2\r\n3,4\r\n", [[1.0, 2.0], [3.0, 4.0]]),
        (MATRIX, "\ufeff1,2\n\n3, 4e0", [[1.0, 2.0], [3.0, 4.0]]),
        (MATRIX, "1,\nnan,4", [[1.0, None], [None, 4.0]]),
        (COLUMNS, '7,"Bonn, ""am Rhein"""\n8,Ulm', None),
        (TEXTS, "a\n1\n", ["a", "1"]),
        ((), "1,2", [[1.0, 2.0]]),
        ((), "a,b", [["a", "b"]]),
        ((TensorSpec("x", "BOOL", (-1,)),), "true\n0", [True, False]),
    ],
)
def test_rows_may_be_csv(
    make_server: MakeServer, inputs: tuple[TensorSpec, ...], body: str, predictions: list[Any] | None
) -> None:
    people = [{"age": 7, "city": ['Bonn, "am Rhein"']}, {"age": 8, "city": ["Ulm"]}]
    answer = make_server(echo, inputs).post(body.encode(), "/invocations", CSV)
    assert (answer.status, answer.json) == (200, {"predictions": predictions or people}), answer.text


BAD_CSV = {
    "a header": (MATRIX, b"a,b\n1,2"),
    "empty": (MATRIX, b"\n"),
    "another number of cells": (MATRIX, b"1,2,3"),
    "ragged": (MATRIX, b"1,2\n3"),
    "infinite": (MATRIX, b"1,inf"),
    "too large": (MATRIX, b"1,1e999"),
    "digits as Python writes them": (MATRIX, b"1_0,2"),
    "half for a whole number": (COLUMNS, b"7.5,Bonn"),
    "5000 digits": (COLUMNS, b"7" * 5000 + b",Bonn"),
    "nothing for a whole number": (COLUMNS, b",Bonn"),
    "no truth": ((TensorSpec("x", "BOOL", (-1,)),), b"yes"),
    "not UTF-8": (TEXTS, b"\xff"),
    "an open quote": (TEXTS, b'"a'),
}


@pytest.mark.parametrize(("inputs", "body"), BAD_CSV.values(), ids=BAD_CSV.keys())
def test_bad_csv_is_400(make_server: MakeServer, inputs: tuple[TensorSpec, ...], body: bytes) -> None:
    server = make_server(echo, inputs)
    answer = server.post(body, "/invocations", CSV)
    assert answer.status == 400, answer.text
    assert not server.calls


def test_an_answer_without_rows_is_csv_without_rows(make_server: MakeServer) -> None:
    server = make_server(lambda _model, _inputs: {"boxes": np.zeros((0, 4))})
    answer = server.post(V2, "/invocations", AS_CSV)
    assert (answer.status, answer.text) == (200, "")


def test_answers_may_be_csv(make_server: MakeServer) -> None:
    def outputs(_model: Any, _inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            "p": np.array([[0.5, math.nan], [1, 2]]),
            "city": np.array(["Ulm, D", "x"]),
            "ok": np.array([True, False]),
        }

    server = make_server(outputs, MATRIX)
    for body in ([[1, 2], [3, 4]], V2):
        answer = server.post(body, "/invocations", AS_CSV)
        assert (answer.headers["content-type"], answer.text) == ("text/csv", '0.5,,"Ulm, D",true\n1.0,2.0,x,false\n')
    assert make_server(add, MATRIX).post(b"1,2", "/invocations", CSV | AS_CSV).text == "3.0\n"


@pytest.mark.parametrize(
    ("accept", "status"),
    [("*/*", 200), ("application/x-npy, */*", 200), ("application/JSON;q=1", 200), ("image/png", 406)],
)
def test_an_answer_that_cannot_be_given_is_406(make_server: MakeServer, accept: str, status: int) -> None:
    server = make_server(add, MATRIX)
    assert server.post([[1, 2]], "/invocations", {"Accept": accept}).status == status


@pytest.mark.parametrize("body", [{}, [], "x", 1, None, {"input": [[1, 2]]}, [1, 2, 3]])
def test_h1_a_body_of_no_known_form_is_400(make_server: MakeServer, body: object) -> None:
    assert make_server(add, MATRIX).post(body, "/invocations").status == 400


def test_ping_says_whether_the_server_is_ready(make_server: MakeServer) -> None:
    server = make_server(add, MATRIX)
    answer = server.get("/ping")
    assert (answer.status, answer.text) == (200, "")
    server.state.drain()
    assert server.get("/ping").status == 503


def test_vertex_ai_chooses_its_routes(make_server: MakeServer) -> None:
    predict = "/v1/endpoints/12/deployedModels/34:predict"
    chosen = PlatformRoutes.parse(
        {"AIP_PREDICT_ROUTE": predict, "AIP_HEALTH_ROUTE": "/v1/endpoints/12/deployedModels/34"}
    )
    server = make_server(add, MATRIX, routes=chosen)
    answer = server.post({"instances": [[1, 2]], "parameters": {"top": 1}}, predict)
    assert answer.json == {"predictions": [3.0]}
    assert server.get("/v1/endpoints/12/deployedModels/34").status == 200
    assert make_server(add, MATRIX).get("/v1/endpoints/12/deployedModels/34").status == 404


@pytest.mark.parametrize("path", ["predict", "/{model}", "/a b", "/a?b", "/" + "a" * 1000])
def test_a_route_that_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(SpecError, match="AIP_HEALTH_ROUTE"):
        PlatformRoutes.parse({"AIP_HEALTH_ROUTE": path})


def test_a_platforms_port_goes_before_the_images() -> None:
    assert Settings.parse({"PORT": "1", "AIP_HTTP_PORT": "2"}).port == 2
    assert Settings.parse({"PORT": "1", "SAGEMAKER_BIND_TO_PORT": "3"}).port == 3
    assert Settings.parse({"PORT": "1", "AIP_HTTP_PORT": ""}).port == 1
    with pytest.raises(SpecError, match="AIP_HTTP_PORT"):
        Settings.parse({"AIP_HTTP_PORT": "http"})
