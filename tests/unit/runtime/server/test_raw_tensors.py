"""Tensors as bytes. Row H6: lengths that lie are refused, in memory that what was sent bounds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlimg.runtime.server.bf16 import halves, widened
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.raw_tensors import from_raw, to_raw
from mlimg.runtime.server.tensors import DTYPES

TEXT = b"\x02\x00\x00\x00\xff\x00"  # one element: two bytes that are no UTF-8


def _elements(name: str) -> st.SearchStrategy[Any] | None:
    return st.binary(max_size=3) if name == "BYTES" else None


@settings(deadline=None)
@given(
    st.sampled_from(sorted(set(DTYPES) - {"BF16"})).flatmap(
        lambda name: st.tuples(st.just(name), hnp.arrays(DTYPES[name], (2, 3), elements=_elements(name)))
    )
)
def test_what_goes_out_comes_in_again(tensor: tuple[str, np.ndarray[Any, Any]]) -> None:
    name, array = tensor
    raw = bytes(to_raw(array, name))
    if name != "BYTES":
        assert raw == array.astype(array.dtype.newbyteorder("<")).tobytes()
    again = from_raw("x", name, [2, 3], memoryview(b"?" + raw)[1:])
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)
    assert again.flags.aligned
    assert again.flags.writeable


@pytest.mark.parametrize(
    "array", [np.arange(12).reshape(3, 4)[:, ::2], np.arange(3, dtype=">i4"), np.asfortranarray(np.ones((2, 3)))]
)
def test_an_array_of_any_layout_goes_out_row_by_row(array: np.ndarray[Any, Any]) -> None:
    assert bytes(to_raw(array, "")) == np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def test_an_answer_may_be_empty() -> None:
    assert len(to_raw(np.zeros((0, 4), np.float32), "FP32")) == 0
    assert len(to_raw(np.zeros((0, 4), np.float32), "BF16")) == 0


def test_bf16_comes_and_goes_to_the_bit() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    array = from_raw("x", "BF16", [256, 256], memoryview(bits.tobytes()))
    assert array.dtype == np.float32
    back = np.frombuffer(to_raw(array, "BF16"), "<u2")
    number = ~np.isnan(array.ravel())
    np.testing.assert_array_equal(back[number], bits[number])
    assert np.isnan(widened(back[~number])).all()


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F808000, 0x3F80),  # halfway: to the even one below
        (0x3F818000, 0x3F82),  # halfway: to the even one above
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # the largest of FP32 is over the largest of BF16
        (0x7F800001, 0x7FC0),  # a NaN whose upper half is infinity's
        (0xFFFFFFFF, 0xFFFF),
    ],
)
def test_fp32_is_rounded_to_bf16(bits: int, expected: int) -> None:
    array = np.array([bits], np.uint32).view(np.float32)
    assert halves(array).tolist() == [expected]


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2], b"\0" * 7),
        ("FP32", [2], b"\0" * 9),
        ("FP32", [2], b""),
        ("FP64", [2**40, 2**40], b"\0" * 8),
        ("BF16", [1], b"\0" * 4),
        ("BOOL", [2], b"\0\2"),
        ("BYTES", [1], TEXT[:-1]),
        ("BYTES", [1], TEXT + b"\0"),
        ("BYTES", [1], TEXT * 2),
        ("BYTES", [2], TEXT),
        ("BYTES", [2], TEXT + b"\0\0\0"),
        ("BYTES", [1], b"\xff\xff\xff\xff"),
        ("BYTES", [2**62], TEXT),
        ("BYTES", [1], b""),
    ],
)
def test_h6_bytes_that_are_not_of_the_shape_are_refused(datatype: str, shape: list[int], data: bytes) -> None:
    with pytest.raises(InputError, match=r"^tensor `x`"):
        from_raw("x", datatype, shape, memoryview(data))


def test_the_twin_passes() -> None:
    assert from_raw("x", "BYTES", [2, 1], memoryview(TEXT * 2)).tolist() == [[b"\xff\0"], [b"\xff\0"]]
    assert from_raw("x", "BOOL", [2], memoryview(b"\0\1")).tolist() == [False, True]
