"""Rows to a running server and back: a table becomes an Open Inference Protocol V2 request.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlimg.runtime.errors import RemoteError, UsageError, printable


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of equal length; `columns` where the text names them."""

    rows: tuple[tuple[Any, ...], ...]
    columns: tuple[str, ...] = ()


def parse_rows(text: str) -> Table | dict[str, Any]:
    """Read rows as CSV (with or without a header) or JSON.

    JSON is a list of rows, a list of objects, ``{"instances": …}`` with either, or a whole V2 request, which is
    returned as it is. Raises UsageError with the line or row that is wrong.
    """
    stripped = text.lstrip("\ufeff \t\r\n")
    if not stripped:
        raise UsageError("no rows to predict: the input is empty")
    return _parse_json(stripped) if stripped[0] in "[{" else _parse_csv(stripped)


def _parse_csv(text: str) -> Table:
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise UsageError(f"the rows are not CSV: {error}") from error
    columns: tuple[str, ...] = ()
    if all(isinstance(_cell(cell), str) for cell in lines[0]):
        columns = tuple(cell.strip() for cell in lines.pop(0))
    return _table([[_cell(cell) for cell in line] for line in lines], columns)


def _cell(text: str) -> float | int | str:
    """Read a CSV cell: a number where it is one, else text."""
    stripped = text.strip()
    try:
        return int(stripped)
    except ValueError:
        pass
    try:
        return float(stripped)
    except ValueError:
        return stripped


def _parse_json(text: str) -> Table | dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the rows are not JSON: {error}") from error
    if isinstance(value, dict) and "inputs" in value:
        return value
    if isinstance(value, dict) and "instances" in value:
        value = value["instances"]
    rows = value if isinstance(value, list) else [value]
    if rows and all(isinstance(row, dict) for row in rows):
        columns = tuple(rows[0])
        for number, row in enumerate(rows, start=1):
            if set(row) != set(columns):
                raise UsageError(f"row {number} does not have the keys of row 1: {', '.join(map(repr, columns))}")
        return _table([[row[column] for column in columns] for row in rows], columns)
    return _table([row if isinstance(row, list) else [row] for row in rows], ())


def _table(rows: Sequence[Sequence[Any]], columns: tuple[str, ...]) -> Table:
    if not rows:
        raise UsageError("no rows to predict")
    width = len(columns) or len(rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise UsageError(f"row {number} has {len(row)} values, not {width}")
        for position, value in enumerate(row):
            name = columns[position] if columns else f"value {position + 1}"
            if value == "" or not isinstance(value, str | int | float):
                raise UsageError(f"row {number}: {printable(name)} is empty, or neither a number nor text")
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"row {number}: {printable(name)} is {value}, which JSON cannot carry")
    return Table(tuple(tuple(row) for row in rows), columns)


def infer_request(table: Table, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make the request that a model with these `inputs` (of its metadata; none where it tells none) understands.

    A model of several inputs, or of none known and a table with a header, gets a tensor a column; any other
    gets all rows as one 2-D tensor. Raises UsageError when the table lacks a column.
    """
    if len(inputs) > 1 or (not inputs and table.columns):
        known = {str(value["name"]): value for value in inputs}
        names = list(known) or list(table.columns)
        columns = table.columns or (tuple(names) if len(names) == len(table.rows[0]) else ())
        missing = [name for name in names if name not in columns]
        if missing:
            raise UsageError(
                f"the rows lack {', '.join(map(printable, missing))}", hint="the first line of a CSV names its columns"
            )
        return {"inputs": [_column(table, columns.index(name), name, known.get(name, {})) for name in names]}
    meta = inputs[0] if inputs else {}
    _check_header(table, meta)
    flat = [value for row in table.rows for value in row]
    shape = [len(table.rows), len(table.rows[0])]
    if len(meta.get("shape", shape)) == 1 and shape[1] == 1:
        shape = shape[:1]
    return {"inputs": [_tensor(str(meta.get("name", "input")), shape, flat, meta.get("datatype") or None)]}


def _check_header(table: Table, meta: Mapping[str, Any]) -> None:
    """A first line of text may be a row of a model that takes text: it is not dropped in silence."""
    takes_text = meta.get("datatype") in {None, "", "BYTES"} and any(
        isinstance(value, str) for row in table.rows or [table.columns] for value in row
    )
    if table.columns and meta and takes_text and meta["name"] not in table.columns:
        name = printable(str(meta["name"]))
        raise UsageError(
            f"the first line does not name the model's input, {name}",
            hint=f"begin the CSV with a line that says {name}",
        )


def _column(table: Table, position: int, name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    shape = [len(table.rows)] + [1] * (len(meta.get("shape", [-1])) - 1)
    return _tensor(name, shape, [row[position] for row in table.rows], meta.get("datatype") or None)


def _tensor(name: str, shape: list[int], data: list[Any], datatype: str | None) -> dict[str, Any]:
    if datatype is None:
        if all(isinstance(value, bool) for value in data):
            datatype = "BOOL"
        else:
            datatype = "BYTES" if any(isinstance(value, str) for value in data) else "FP64"
    if datatype == "BYTES":
        data = [str(value) for value in data]
    elif any(isinstance(value, str) for value in data):
        text = next(value for value in data if isinstance(value, str))
        raise UsageError(f"{printable(name)} takes {datatype}, not {printable(text)!r}")
    elif datatype.startswith("FP"):
        data = [float(value) for value in data]
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def answer_table(answer: Mapping[str, Any]) -> Table:
    """The outputs of a V2 answer side by side, a row for each row asked. Raises RemoteError for anything else."""
    try:
        columns: list[str] = []
        parts: list[list[list[Any]]] = []
        for output in answer["outputs"]:
            shape, data, name = output["shape"], _flat(output["data"]), str(output["name"])
            count = shape[0] if shape else 1
            width = len(data) // count if count else 0
            columns += [name] if width == 1 else [f"{name}[{index}]" for index in range(width)]
            parts.append([data[start : start + width] for start in range(0, len(data), width or 1)])
        rows = tuple(tuple(value for cells in row for value in cells) for row in zip(*parts, strict=True))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RemoteError("the server's answer is not one of the Open Inference Protocol V2") from error
    return Table(rows, tuple(columns))


def _flat(data: list[Any]) -> list[Any]:
    """Tensor contents may come nested or flat."""
    return [value for part in data for value in _flat(part)] if data and isinstance(data[0], list) else data


def table_text(table: Table) -> str:
    """A table as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return text.getvalue()
