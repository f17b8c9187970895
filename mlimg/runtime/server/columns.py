"""Tables whose columns come as a tensor each, for handlers of models that were trained on named columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlimg.runtime.server.errors import InputError

Column = np.ndarray[Any, Any]


def side_by_side(columns: Mapping[str, Column], names: Sequence[str]) -> Column:
    """One row for each place of the columns, which stand in the order of `names`. Raises InputError."""
    check_lengths(columns)
    return np.column_stack([columns[name] for name in names])


def check_lengths(columns: Mapping[str, Column]) -> None:
    """Refuse columns that are no table. Raises InputError."""
    if len({len(column) for column in columns.values()}) > 1:
        raise InputError("the columns are not of equal length")
