"""Requests of V2 over gRPC, as bytes: what is read, what is refused, what is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.exchange import Call, Reply, answer
from mlimg.runtime.server.grpc_v2 import wire
from mlimg.runtime.server.grpc_v2.codec import GrpcCodec, model_of
from mlimg.runtime.server.grpc_v2.messages import MESSAGES
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.model import LoadedModel

ECHO = LoadedModel(
    ModelMetadata("digits", "3", "sklearn", (), ()),
    Handler(Path("handler.py"), lambda _folder, _options: None, lambda _model, inputs: inputs, None, None),
    None,
)


def tensor(datatype: str = "INT8", shape: tuple[int, ...] = (2,), name: str = "x", **contents: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **({"contents": contents} if contents else {})}


def request(*inputs: dict[str, Any], **fields: Any) -> bytes:
    body: bytes = MESSAGES["ModelInferRequest"](inputs=inputs, **fields).SerializeToString()
    return body


def echo(body: bytes) -> Any:
    """The answer, or the exception."""
    (outcome,) = answer(ECHO, [Call(GrpcCodec(), body)])
    return MESSAGES["ModelInferResponse"].FromString(outcome.body) if isinstance(outcome, Reply) else outcome


@pytest.mark.parametrize(
    ("datatype", "contents", "values", "dtype"),
    [
        ("BOOL", "bool_contents", [True, False], "?"),
        ("INT8", "int_contents", [-128, 127], "<i1"),
        ("INT16", "int_contents", [-(2**15), 1], "<i2"),
        ("INT32", "int_contents", [-(2**31), 1], "<i4"),
        ("INT64", "int64_contents", [-(2**63), 1], "<i8"),
        ("UINT8", "uint_contents", [0, 255], "<u1"),
        ("UINT16", "uint_contents", [0, 2**16 - 1], "<u2"),
        ("UINT32", "uint_contents", [0, 2**32 - 1], "<u4"),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], "<u8"),
        ("FP32", "fp32_contents", [0.5, float("inf")], "<f4"),
        ("FP64", "fp64_contents", [0.1, -0.1], "<f8"),
    ],
)
def test_numbers_of_a_list_come_back_as_bytes(datatype: str, contents: str, values: list[Any], dtype: str) -> None:
    told = echo(request(tensor(datatype, **{contents: values})))
    assert [(out.name, out.datatype, list(out.shape)) for out in told.outputs] == [("x", datatype, [2])]
    assert list(told.raw_output_contents) == [np.array(values, dtype).tobytes()]


def test_texts_are_bytes_each_after_its_length() -> None:
    told = echo(request(tensor("BYTES", bytes_contents=[b"", b"\xff\x00"])))
    raw = b"\x00\x00\x00\x00" + b"\x02\x00\x00\x00\xff\x00"
    assert list(told.raw_output_contents) == [raw]
    assert echo(request(tensor("BYTES"), raw_input_contents=[raw])) == told


def test_the_answer_names_model_version_and_id_and_has_the_outputs_that_were_selected() -> None:
    both = (tensor(name="a"), tensor(name="b"))
    told = echo(request(*both, id="7", raw_input_contents=[b"\x01\x02", b"\x03\x04"], outputs=[{"name": "b"}]))
    assert (told.model_name, told.model_version, told.id) == ("digits", "3", "7")
    assert [out.name for out in told.outputs] == ["b"]
    assert list(told.raw_output_contents) == [b"\x03\x04"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (request(), "`inputs` is empty"),
        (request(tensor(int_contents=[1])), "holds 2 values, `int_contents` has 1"),
        (request(tensor()), "holds 2 values, `int_contents` has 0"),
        (request(tensor(int_contents=[1, 128])), "a value that INT8 cannot hold"),
        (request(tensor(int64_contents=[1, 2])), "INT8 comes in `int_contents`, not in `int64_contents`"),
        (request(tensor("FP16", fp32_contents=[1, 2])), "FP16 comes in `raw_input_contents` alone"),
        (request(tensor("INT7", int_contents=[1, 2])), "unknown datatype `INT7`"),
        (request(tensor(shape=(2**62, 2**62), int_contents=[1])), "`int_contents` has 1"),
        (request(tensor(shape=(-1,), int_contents=[1])), "at least 1"),
        (request(tensor(int_contents=[1, 2]), raw_input_contents=[b"12"]), "`contents` beside `raw_input_contents`"),
        (request(tensor(), raw_input_contents=[b"1"]), "takes 2 bytes, not 1"),
        (request(tensor(), raw_input_contents=[b"12", b"12"]), "has 2 tensors, `inputs` has 1"),
        (request(tensor(), tensor(), raw_input_contents=[b"12", b"12"]), "is in `inputs` twice"),
        (request(tensor(), raw_input_contents=[b"12"], outputs=[{"name": "y"}]), "unknown output `y`"),
        (
            request({**tensor(), "parameters": {"shared_memory_region": {"string_param": "r"}}}),
            "`shared_memory_region` of tensor `x` is not supported",
        ),
        (request(*(tensor(name=str(number)) for number in range(257))), "at most 256"),
        (request(tensor(int_contents=[1, 2]))[:-1], "no message of the protocol"),
        (b"\x2a\x02\xff\xff", "no message of the protocol"),
        (b"\x00" * 10, "no message of the protocol"),
        (b"\xff" * 11, "no message of the protocol"),
        (b"\x28\x01" * 5000, "more than 4096 fields"),
    ],
)
def test_what_is_wrong_is_refused_with_the_reason(body: bytes, why: str) -> None:
    error = echo(body)
    assert isinstance(error, InputError)
    assert why in str(error)


def test_the_model_is_found_wherever_its_name_stands_and_whatever_else_is_there() -> None:
    body = request(tensor(), model_name="digits", model_version="3", raw_input_contents=[bytes(1000)])
    assert model_of(body) == ("digits", "3")
    later = MESSAGES["ModelInferRequest"](model_name="wine").SerializeToString()
    assert model_of(b"\x78\x05" + body + later) == (
        "wine",
        "3",
    )  # of two, the last counts; field 15 is unknown
    assert model_of(request(tensor())) == ("", None)
    with pytest.raises(InputError):
        model_of(b"\x0a\x01\xff")


@pytest.mark.parametrize("length", [0, 127, 128, 2**14, 2**31])
def test_a_field_begins_as_it_is_read(length: int) -> None:
    begin = wire.head(6, length)
    if length < 2**20:
        (field,) = wire.fields(begin + bytes(length))
        assert (field.number, field.value, field.end) == (6, len(begin), len(begin) + length)
    else:
        assert begin == b"\x32\x80\x80\x80\x80\x08"
