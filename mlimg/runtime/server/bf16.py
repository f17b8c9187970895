"""BF16, the upper half of FP32. numpy has no such type: arrays hold such values as FP32, and exactly."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def halves(array: Array) -> Array:
    """The 16 bits of each FP32 value, rounded to the nearest, of two the even one; beyond the largest is infinity."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # a NaN stays one: what is cut off might be all that tells it from infinity
    return np.where(np.isnan(array), quiet, near).astype(np.uint16)


def widened(bits: Array) -> Array:
    """The FP32 values of `halves`."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(array: Array) -> Array:
    """FP32 values as BF16 has them."""
    return widened(halves(array))
