"""Tensors as bytes after the JSON. Row H6 is a corpus: a length that lies is 400, and the model is not asked."""

import json
from typing import Any

import numpy as np
import pytest

from mlimg.runtime.server.tensors import TensorSpec
from tests.unit.runtime.server.conftest import INFER, Answer, MakeServer, Server, tensor

HEADER = "inference-header-content-length"
SPECS = (TensorSpec("x", "FP64", (-1, 2)), TensorSpec("t", "BYTES", (-1,)))
X = np.array([[1.5, np.nan], [np.inf, 4]])
T = b"\x01\x00\x00\x00\xff\x00\x00\x00\x00"


def binary(name: str = "x", size: object = 32, **changes: Any) -> dict[str, Any]:
    return tensor(name=name, data=None, parameters={"binary_data_size": size}, **changes)


TEXTS = binary("t", 9, datatype="BYTES", shape=[2])


def send(server: Server, request: object, rest: bytes, length: int | str | None = None) -> Answer:
    head = request if isinstance(request, bytes) else json.dumps(request).encode()
    return server.post(head + rest, INFER, {HEADER: str(len(head) if length is None else length)})


def parts(answer: Answer) -> tuple[dict[str, Any], bytes]:
    assert answer.status == 200, answer.text
    body = answer.text.encode(errors="surrogateescape")
    length = int(answer.headers[HEADER])
    return json.loads(body[:length]), body[length:]


def test_tensors_come_and_go_as_bytes(make_server: MakeServer) -> None:
    request = {"id": "7", "inputs": [binary(), TEXTS], "parameters": {"binary_data_output": True}}
    answer = send(make_server(inputs=SPECS), request, X.tobytes() + T)
    head, rest = parts(answer)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert head["id"] == "7"
    assert head["outputs"] == [
        {"name": "x", "datatype": "FP64", "shape": [2, 2], "parameters": {"binary_data_size": 32}},
        {"name": "t", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 9}},
    ]
    assert rest == X.tobytes() + T  # NaN and infinity to the bit


def test_each_tensor_chooses_its_form(make_server: MakeServer) -> None:
    wanted = [{"name": "y", "parameters": {"binary_data": False}}, {"name": "x"}]
    request = {"inputs": [tensor(name="y"), binary()], "outputs": wanted, "parameters": {"binary_data_output": True}}
    head, rest = parts(send(make_server(), request, X.tobytes()))
    assert head["outputs"][0] == tensor(name="y")
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 32}
    assert rest == X.tobytes()


def test_an_output_asks_for_bytes_and_the_input_is_json(make_server: MakeServer) -> None:
    body = {"inputs": [tensor()], "outputs": [{"name": "x", "parameters": {"binary_data": True}}]}
    _, rest = parts(make_server().post(body))
    assert rest == np.array([1.0, 2, 3, 4]).tobytes()


def test_without_binary_outputs_the_answer_is_json(make_server: MakeServer) -> None:
    answer = send(make_server(), {"inputs": [binary(datatype="INT64", shape=[4])]}, np.arange(4).tobytes())
    assert answer.json["outputs"][0]["data"] == [0, 1, 2, 3]
    assert HEADER not in answer.headers
    assert answer.headers["content-type"] == "application/json"


def test_bf16_is_told_to_the_handler_as_fp32(make_server: MakeServer) -> None:
    specs = (TensorSpec("x", "BF16", (-1,)),)
    server = make_server(lambda _m, i: {"x": i["x"] * 2}, specs, specs)
    request = {
        "inputs": [binary(size=4, datatype="BF16", shape=[2])],
        "outputs": [{"name": "x", "parameters": {"binary_data": True}}],
    }
    head, rest = parts(send(server, request, b"\x80\x3f\xc0\x3f"))  # 1 and 1.5
    assert head["outputs"][0]["datatype"] == "BF16"
    assert rest == b"\x00\x40\x40\x40"  # 2 and 3
    assert server.calls[0]["x"].dtype == np.float32
    answer = server.post({"inputs": [tensor(datatype="BF16", shape=[2], data=[1, 1.5])]})
    assert answer.json["outputs"] == [{"name": "x", "datatype": "BF16", "shape": [2], "data": [2.0, 3.0]}]


def test_texts_that_json_cannot_carry_go_as_bytes_or_are_an_error(make_server: MakeServer) -> None:
    server = make_server(lambda _m, _i: {"y": np.array([b"\xff"], np.object_)})
    assert server.post({"inputs": [tensor()]}).status == 500
    _, rest = parts(server.post({"inputs": [tensor()], "parameters": {"binary_data_output": True}}))
    assert rest == b"\x01\x00\x00\x00\xff"


GOOD = {"inputs": [binary(), TEXTS], "parameters": {"binary_data_output": True}}
HEAD = len(json.dumps(GOOD))
REST = X.tobytes() + T
BAD: dict[str, tuple[object, bytes, int | str | None]] = {
    "a byte is missing": (GOOD, REST[:-1], None),
    "a byte is left": (GOOD, REST + b"\0", None),
    "nothing follows": (GOOD, b"", None),
    "size too small": ({"inputs": [binary(size=31), TEXTS]}, REST, None),
    "size too large": ({"inputs": [binary(size=33), TEXTS]}, REST, None),
    "size of all that is there": ({"inputs": [binary(size=41), TEXTS]}, REST, None),
    "sizes overlap": ({"inputs": [binary(size=40), TEXTS]}, REST, None),
    "size of 2^62": ({"inputs": [binary(size=2**62), TEXTS]}, REST, None),
    "size is negative": ({"inputs": [binary(size=-32), TEXTS]}, REST, None),
    "size is a text": ({"inputs": [binary(size="32"), TEXTS]}, REST, None),
    "size is true": ({"inputs": [binary(size=True), TEXTS]}, REST, None),
    "size is a fraction": ({"inputs": [binary(size=32.0), TEXTS]}, REST, None),
    "size is null": ({"inputs": [binary(size=None), TEXTS]}, REST, None),
    "data, too": ({"inputs": [{**binary(), "data": [1, 2, 3, 4]}, TEXTS]}, REST, None),
    "another shape": ({"inputs": [binary(shape=[3, 2]), TEXTS]}, REST, None),
    "shape of 2^80": ({"inputs": [binary(shape=[2**40, 2**40]), TEXTS]}, REST, None),
    "another datatype": ({"inputs": [binary(datatype="FP32"), TEXTS]}, REST, None),
    "no datatype": ({"inputs": [binary(datatype=None), TEXTS]}, REST, None),
    "texts of another count": ({"inputs": [binary(), {**TEXTS, "shape": [3]}]}, REST, None),
    "text longer than the rest": (GOOD, X.tobytes() + b"\xff" + T[1:], None),
    "JSON ends sooner": (GOOD, REST, HEAD - 1),
    "JSON ends later": (GOOD, REST, HEAD + 1),
    "JSON is longer than the body": (GOOD, REST, HEAD + len(REST) + 1),
    "JSON of no length": (GOOD, REST, 0),
    "negative length": (GOOD, REST, -1),
    "length of 30 digits": (GOOD, REST, "9" * 30),
    "length in hexadecimal": (GOOD, REST, hex(HEAD)),
    "length with a sign": (GOOD, REST, f"+{HEAD}"),
    "length with another's digits": (GOOD, REST, "²"),
    "bytes after JSON tensors": ({"inputs": [tensor(), tensor(name="t", datatype="BYTES", data=["a"])]}, b"\0", None),
    "JSON tensors and half a header": (b'{"inputs": [', b"", None),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_h6_a_length_that_lies_is_400(make_server: MakeServer, bad: tuple[object, bytes, int | str | None]) -> None:
    server = make_server(inputs=SPECS)
    answer = send(server, *bad)
    assert answer.status == 400, answer.text
    assert set(answer.json) == {"error"}
    assert answer.json["error"].isprintable()
    assert server.calls == []
    assert send(server, GOOD, REST).status == 200, "the twin passes"
