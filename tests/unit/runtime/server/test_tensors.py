import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.tensors import (
    DATATYPES,
    DTYPES,
    TensorSpec,
    as_tensor,
    as_texts,
    conform,
    decode,
    encode,
    wire_datatypes,
)

NUMERIC = [name for name in DTYPES if name not in {"BYTES", "BOOL"}]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT8", [-128, 127]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP16", [0.5, -2]),
        ("FP32", [0.1, 3e38]),
        ("BF16", [1, 2.0**127]),
        ("FP64", [1e308, -5e-324]),
        ("BYTES", ["", "ä\x00"]),
    ],
)
def test_every_datatype_is_taken_to_its_limits(datatype: str, data: list[Any]) -> None:
    array = decode("x", datatype, [2], data)
    assert array.dtype == DTYPES[datatype]
    assert array.shape == (2,)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("UINT8", 256),
        ("UINT8", -1),
        ("INT8", -129),
        ("INT64", 2**63),
        ("UINT64", 2**64),
        ("UINT64", -1),
        ("FP16", 70000.0),
        ("FP32", 1e39),
        ("BF16", 3.4e38),
        ("FP64", 10**400),
        ("FP64", float("inf")),
    ],
)
def test_a_value_one_step_outside_is_refused(datatype: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{datatype} cannot hold"):
        decode("x", datatype, [1], [value])


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP64", ["1.0"]),
        ("FP64", [True]),
        ("FP64", [{}]),
        ("INT32", [1.0]),
        ("INT32", [None]),
        ("INT32", [True]),
        ("BOOL", [1]),
        ("BYTES", [1]),
        ("BYTES", [None]),
    ],
)
def test_a_value_of_another_kind_is_refused(datatype: str, data: list[Any]) -> None:
    with pytest.raises(InputError, match=f"{datatype} cannot hold"):
        decode("x", datatype, [1], data)


def test_null_is_a_missing_number() -> None:
    array = decode("x", "FP32", [2], [None, 1])
    assert np.isnan(array[0])
    assert array[1] == 1


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_data_comes_flat_or_nested_as_the_shape_says(data: list[Any]) -> None:
    assert decode("x", "INT64", [2, 3], data).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "data",
    [
        [[1, 2], [3, 4], [5, 6]],
        [[1, 2, 3], [4, 5]],
        [[1, 2, 3], 4, 5, 6],
        [[[1, 2, 3], [4, 5, 6]]],
        [[1, 2, 3, 4, 5, 6]],
        [[], []],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 6, 7],
        [],
        {},
        "123456",
        None,
    ],
)
def test_data_that_is_not_of_the_shape_is_refused(data: object) -> None:
    with pytest.raises(InputError, match=r"`data`"):
        decode("x", "INT64", [2, 3], data)


@pytest.mark.parametrize(
    "shape",
    [
        [-1, 3],
        [0, 3],
        [2**40, 2**40],
        [2**63],
        [10**1000],
        [2.0, 3],
        [True, 6],
        ["6"],
        [1] * 33,
        6,
        None,
        {},
    ],
)
def test_a_shape_is_checked_before_memory_is_taken(shape: object) -> None:
    with pytest.raises(InputError, match="tensor `x`"):
        decode("x", "INT64", shape, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("datatype", ["FP128", "float64", "", None, 3, [], {}])
def test_an_unknown_datatype_is_refused(datatype: object) -> None:
    with pytest.raises(InputError, match="unknown datatype"):
        decode("x", datatype, [1], [1])


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(InputError, match="not Unicode"):
        decode("x", "BYTES", [1], [json.loads('"\\ud800"')])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first draw imports
@given(st.sampled_from(sorted(DTYPES)).flatmap(lambda name: hnp.arrays(DTYPES[name], (3, 1), elements=_elements(name))))
def test_what_is_encoded_is_decoded_again(array: np.ndarray[Any, Any]) -> None:
    text = json.dumps(encode("x", array, DATATYPES[array.dtype]), allow_nan=False)
    value = json.loads(text)
    again = decode(value["name"], value["datatype"], value["shape"], value["data"])
    assert again.dtype == array.dtype
    if array.dtype.kind == "f":  # JSON has no infinities: they arrive as missing numbers
        array = np.where(np.isfinite(array), array, np.nan).astype(array.dtype)
        np.testing.assert_array_equal(again, array)
    else:
        assert (again == array).all()


def _elements(name: str) -> st.SearchStrategy[Any] | None:
    return st.text(max_size=3).map(lambda text: text.encode("utf-8", "ignore")) if name == "BYTES" else None


def test_not_a_number_is_null_in_an_answer() -> None:
    assert encode("y", np.array([np.nan, 1.0, -np.inf]), "FP64")["data"] == [None, 1.0, None]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array(["a", "bc"]), object),
        (np.array([b"a"]), object),
        (np.array(["a", b"b"], object), object),
        ([1.5], np.float64),
        (3, np.int64),
        (np.array([1], ">i4"), np.int32),
        (np.array([True]), np.bool_),
    ],
)
def test_a_handler_may_return_what_numpy_makes_a_tensor_of(value: object, dtype: type) -> None:
    array = as_tensor(value)
    assert array.dtype == np.dtype(dtype)
    assert array.ndim == 1


@pytest.mark.parametrize("value", [np.array([1j]), np.array(["2020-01-01"], "M8[D]"), object(), [None], {"a": 1}])
def test_what_is_no_tensor_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="tensor"):
        as_tensor(value)


def test_an_input_gets_the_datatype_that_the_model_declares() -> None:
    spec = TensorSpec("x", "FP32", (-1, 2))
    array = conform("x", np.array([[1, 2]], np.int64), spec)
    assert array.dtype == np.float32


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array([1.5]), "INT64"),
        (np.array([300], np.int64), "INT8"),
        (np.array([-1], np.int64), "UINT8"),
        (np.array([1e300]), "FP32"),
        (np.array([b"1"], object), "FP64"),
        (np.array([1.0]), "BYTES"),
        (np.array([1]), "BOOL"),
    ],
)
def test_an_input_whose_values_would_change_is_refused(array: np.ndarray[Any, Any], datatype: str) -> None:
    with pytest.raises(InputError):
        conform("x", array, TensorSpec("x", datatype, (-1,)))


def test_a_model_that_declares_bf16_gets_and_gives_what_bf16_can_hold() -> None:
    spec = TensorSpec("x", "BF16", (-1,))
    given = np.array([1.0, 1.001, np.pi], np.float32)
    (bits,) = np.frombuffer(conform("x", given, spec).tobytes(), "<u4").reshape(1, -1)
    assert not (bits & 0xFFFF).any()
    assert conform("x", np.array([3.0]), spec).dtype == np.float32
    with pytest.raises(InputError, match="BF16 cannot hold"):
        conform("x", np.array([1e300]), spec)
    tensors = {"x": given, "y": given, "n": np.array([1])}
    datatypes = wire_datatypes(tensors, (spec, TensorSpec("n", "BF16", (-1,)), TensorSpec("z", "BF16", (-1,))))
    assert datatypes == {"x": "BF16", "y": "FP32", "n": "INT64"}
    assert encode("x", given, "BF16") == {"name": "x", "datatype": "BF16", "shape": [3], "data": [1.0, 1.0, 3.140625]}


def test_a_missing_number_stays_missing_in_another_datatype() -> None:
    assert np.isnan(conform("x", np.array([np.nan]), TensorSpec("x", "FP32", (-1,)))[0])


def test_texts_of_any_shape_are_decoded_and_what_is_no_text_is_refused() -> None:
    array = np.array([["é".encode(), b""]], np.object_)
    assert as_texts(array).tolist() == [["é", ""]]
    numbers = np.zeros(2)
    assert as_texts(numbers) is numbers
    with pytest.raises(InputError, match="UTF-8"):
        as_texts(np.array([b"\xff"], np.object_))


def test_a_column_may_have_one_dimension_or_two() -> None:
    assert conform("x", np.zeros((3, 1)), TensorSpec("x", "FP64", (-1,))).shape == (3,)
    assert conform("x", np.zeros(3), TensorSpec("x", "FP64", (-1, 1))).shape == (3, 1)
    with pytest.raises(InputError, match="shape"):
        conform("x", np.zeros((3, 2)), TensorSpec("x", "FP64", (-1,)))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"name": "", "datatype": "FP64", "shape": [1]},
        {"name": "x", "datatype": "FP65", "shape": [1]},
        {"name": "x", "datatype": "FP64", "shape": [-2]},
        {"name": "x", "datatype": "FP64"},
    ],
)
def test_a_malformed_signature_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="signature"):
        TensorSpec.parse(value)
