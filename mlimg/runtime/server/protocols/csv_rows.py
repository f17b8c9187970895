"""Rows as CSV without a header, the model's inputs in their order: RFC 4180, UTF-8."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.metadata import Arrays, ModelMetadata
from mlimg.runtime.server.protocols.instances import plain, read_rows
from mlimg.runtime.server.tensors import shown

_BOOLS: Final = {"true": True, "1": True, "false": False, "0": False}


def read_csv(model: ModelMetadata, body: bytes) -> Arrays:
    """The tensors of rows of cells; an empty cell is a missing number, or an empty text. Raises InputError."""
    rows = _rows(body)
    width = len(rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise InputError(f"row {number} has {len(row)} cells, the first has {width}")
    specs = model.inputs if len(model.inputs) > 1 else model.inputs[:1] * width
    if model.inputs and len(specs) != width:
        raise InputError(f"the rows have {width} cells: the model takes {len(specs)}")
    datatypes = [spec.datatype for spec in specs] or [None] * width
    columns = [
        _column(number, cells, datatype)
        for number, (cells, datatype) in enumerate(zip(zip(*rows, strict=True), datatypes, strict=True), start=1)
    ]
    return read_rows(model, [list(row) for row in zip(*columns, strict=True)])


def write_csv(tensors: Arrays) -> bytes:
    """A row for each prediction: the outputs side by side. Raises as `plain` does."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    flat = {name: array.reshape(len(array), math.prod(array.shape[1:])) for name, array in tensors.items()}
    for row in zip(*plain(flat).values(), strict=True):
        writer.writerow([_cell(value) for values in row for value in values])
    return out.getvalue().encode()


def _rows(body: bytes) -> list[list[str]]:
    try:
        text = body.decode("utf-8-sig")  # spreadsheets begin with a byte order mark
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except UnicodeDecodeError:
        raise InputError("the body is not UTF-8") from None
    except csv.Error as error:
        raise InputError(f"the body is not CSV: {error}") from None
    if not rows:
        raise InputError("the body has no rows")
    return rows


def _column(number: int, cells: Sequence[str], datatype: str | None) -> list[Any]:
    """The values of a column's cells; one of no known datatype holds numbers, if all its cells do."""
    values: list[Any] = []
    for cell in cells:
        try:
            values.append(_value(cell, datatype or "FP64"))
        except (ValueError, KeyError):
            if datatype is None:
                return list(cells)
            raise InputError(f"column {number} is {datatype}, which cannot hold `{shown(cell)}`") from None
    return values


def _value(cell: str, datatype: str) -> Any:
    """Raises ValueError, KeyError."""
    if datatype == "BYTES":
        return cell
    if datatype == "BOOL":
        return _BOOLS[cell.strip().lower()]
    if "_" in cell:  # which Python takes between digits
        raise ValueError
    if datatype.startswith(("INT", "UINT")):
        return int(cell)
    number = float(cell) if cell.strip() else math.nan
    if math.isinf(number):
        raise ValueError
    return None if math.isnan(number) else number


def _cell(value: Any) -> Any:
    return "" if value is None else str(value).lower() if isinstance(value, bool | np.bool_) else value
