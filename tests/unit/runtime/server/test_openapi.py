"""The OpenAPI document: valid, true of the routes there are, and of what the model takes."""

import json
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.state import ModelState, Phase
from mlimg.runtime.server.tensors import TensorSpec
from tests.unit.runtime.server.conftest import INFER, MakeServer, Server, tensor

DIGITS = (TensorSpec("input", "FP64", (-1, 4)),)
COLUMNS = (
    TensorSpec("age", "INT64", (-1,)),
    TensorSpec("town", "BYTES", (-1, 1)),
    TensorSpec("vip", "BOOL", (-1,), {"required": False}),
)
FIXED = (TensorSpec("image", "UINT8", (1, 2, 2)),)
CLASSES = (TensorSpec("class", "INT64", (-1,), {"classes": ["<img src=x onerror=alert(1)>"]}),)
SIGNATURES = [DIGITS, COLUMNS, FIXED, (TensorSpec("x", None, (-1, -1)),), ()]


def document(server: Server) -> Any:
    answer = server.get("/openapi.json")
    assert answer.status == 200
    OpenAPIV31SpecValidator(answer.json).validate()
    return answer.json


def request_schema(document: Any, path: str = INFER) -> Draft202012Validator:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": document["components"]})


@pytest.mark.parametrize("inputs", SIGNATURES)
def test_every_path_is_served_and_every_example_is_answered(
    make_server: MakeServer, inputs: tuple[TensorSpec, ...]
) -> None:
    server = make_server(lambda _model, _inputs: {"class": np.array([7])}, inputs, CLASSES)
    described = document(server)
    examples = 0
    for path, item in described["paths"].items():
        if "get" in item:
            assert server.get(path).status == 200, path
        for media_type, body in item.get("post", {}).get("requestBody", {}).get("content", {}).items():
            if "example" in body:
                examples += 1
                request_schema(described, path).validate(body["example"])
                answer = server.post(body["example"], path, {"Content-Type": media_type})
                assert answer.status == 200, (path, answer.text)
                schema = item["post"]["responses"]["200"]["content"]["application/json"]["schema"]
                Draft202012Validator({**schema, "components": described["components"]}).validate(answer.json)
    assert examples == (4 if inputs else 0)


def test_a_document_that_is_none_is_found_out(make_server: MakeServer) -> None:
    described = document(make_server(inputs=DIGITS))
    del described["paths"][INFER]["post"]["responses"]["200"]["description"]
    with pytest.raises(OpenAPIValidationError):
        OpenAPIV31SpecValidator(described).validate()


def column(name: str, datatype: str, *data: object) -> dict[str, Any]:
    return tensor(name=name, datatype=datatype, shape=[len(data)], data=list(data))


@pytest.mark.parametrize(
    ("tensors", "status"),
    [
        ([column("age", "INT64", 1), column("town", "BYTES", "Ulm")], 200),
        ([column("age", "UINT8", 1), column("town", "BYTES", "Ulm"), column("vip", "BOOL", True)], 200),
        ([tensor(name="age", datatype="INT64", shape=[1, 1], data=[[1]]), column("town", "BYTES", "Ulm")], 200),
        ([column("age", "BYTES", "1"), column("town", "BYTES", "Ulm")], 400),
        ([column("age", "INT64", 1), column("city", "BYTES", "Ulm")], 400),
        ([tensor(name="age", datatype="INT64", shape=[1, 2], data=[1, 2]), column("town", "BYTES", "Ulm")], 400),
        ([column("age", "INT64", "1"), column("town", "BYTES", "Ulm")], 400),
        ([], 400),
    ],
)
def test_the_schema_takes_what_the_model_takes(make_server: MakeServer, tensors: list[Any], status: int) -> None:
    server = make_server(lambda _model, _inputs: {"class": np.array([7])}, COLUMNS, CLASSES)
    body = {"inputs": tensors}
    assert server.post(body).status == status
    assert request_schema(document(server)).is_valid(body) == (status == 200)


def test_an_example_too_large_to_read_is_left_out(make_server: MakeServer) -> None:
    described = document(make_server(inputs=(TensorSpec("image", "FP32", (-1, 3, 224, 224)),)))
    assert "example" not in described["paths"][INFER]["post"]["requestBody"]["content"]["application/json"]
    assert len(json.dumps(described)) < 30_000


def test_errors_are_described_with_when_to_come_back(make_server: MakeServer) -> None:
    described = document(make_server(inputs=DIGITS))
    assert {"200", "400", "413", "503", "504"} <= described["paths"][INFER]["post"]["responses"].keys()
    assert "Retry-After" in described["components"]["responses"]["503"]["headers"]


def test_a_binary_request_as_described_is_answered_as_described(make_server: MakeServer) -> None:
    server = make_server(lambda _model, _inputs: {"class": np.array([7])}, DIGITS, CLASSES)
    described = document(server)["paths"][INFER]["post"]
    (parameter,) = described["parameters"]
    one = {"name": "input", "datatype": "FP64", "shape": [1, 4], "parameters": {"binary_data_size": 32}}
    body = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    assert "application/octet-stream" in described["requestBody"]["content"]
    answer = server.post(body + bytes(32), headers={parameter["name"]: str(len(body))})
    told = described["responses"]["200"]
    assert (answer.status, answer.headers["content-type"] in told["content"]) == (200, True)
    assert told["headers"].keys() <= answer.headers.keys()


@pytest.mark.parametrize("enabled", [True, False])
def test_models_can_be_loaded_where_the_document_says_so(make_server: MakeServer, *, enabled: bool) -> None:
    server = make_server(inputs=DIGITS, repository_api=enabled)
    described = document(server)
    for path in ("/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload"):
        assert (path in described["paths"]) is enabled
        # No repository is open in this server, which is said after the body was read.
        assert server.post({}, path.replace("{model}", "digits")).status == (503 if enabled else 404)
        if enabled:
            schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            wrong = {"parameters": {"model": 1, "uri": "oci://x", "unload_dependents": 2}}
            assert not Draft202012Validator(schema).is_valid(wrong)
            assert server.post(wrong, path.replace("{model}", "digits")).status == 400


def test_before_the_model_is_up_the_document_says_so(make_server: MakeServer) -> None:
    server = make_server(inputs=DIGITS)
    server.state.models = (ModelState("digits"),)
    server.state.models[0].enter(Phase.LOADING)
    described = document(server)
    assert INFER not in described["paths"]
    assert described["x-mlimg"]["ready"] is False
    assert [(model["name"], model["phase"]) for model in described["x-mlimg"]["models"]] == [("digits", "loading")]


def test_of_several_models_each_has_its_paths_and_platforms_have_none(make_server: MakeServer) -> None:
    server = make_server(inputs=DIGITS)
    assert "/invocations" in document(server)["paths"]
    failed = ModelState("wine")
    failed.fail(ModelError("it is sour"))
    server.state.models = (*server.state.models, failed)
    described = document(server)
    assert INFER in described["paths"]
    assert "/invocations" not in described["paths"]
    assert described["x-mlimg"]["models"][1]["reason"] == "it is sour"


def test_it_can_be_switched_off(make_server: MakeServer) -> None:
    for path in ("/openapi.json", "/docs", "/"):
        assert make_server(docs=True).get(path).status == 200
        assert make_server(docs=False).get(path).status == 404
