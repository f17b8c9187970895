"""Columns become a table."""

import numpy as np
import pytest

from mlimg.runtime.server.columns import side_by_side
from mlimg.runtime.server.errors import InputError


def test_columns_stand_in_the_order_of_the_training() -> None:
    columns = {"b": np.array([3, 4]), "a": np.array([1.5, 2])}
    np.testing.assert_array_equal(side_by_side(columns, ["a", "b"]), [[1.5, 3], [2, 4]])


def test_columns_of_unequal_length_are_no_table() -> None:
    with pytest.raises(InputError, match="equal length"):
        side_by_side({"a": np.array([1]), "b": np.array([1, 2])}, ["a", "b"])
