"""Our own server code: two functions are enough, `signature` lets clients send columns by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlimg.runtime.server.columns import side_by_side


@dataclass(frozen=True)
class Regression:
    """What training left: one weight a column."""

    columns: list[str]
    weights: np.ndarray
    intercept: float


def load(model_dir: Path, options: Mapping[str, object]) -> Regression:
    """Called once, before the server is ready. `options` would be those of a template of one's own."""
    columns = json.loads((model_dir / "columns.json").read_text(encoding="utf-8"))
    with np.load(model_dir / "coefficients.npz") as arrays:
        return Regression(columns, arrays["weights"], float(arrays["intercept"]))


def predict(model: Regression, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Called for each request, by several threads."""
    rows = side_by_side(inputs, model.columns)
    return {"progression": rows @ model.weights + model.intercept}


def signature(model: Regression) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """What the model's metadata says, and requests are checked against."""
    inputs: list[dict[str, object]] = [{"name": name, "datatype": "FP64", "shape": [-1]} for name in model.columns]
    return inputs, [{"name": "progression", "datatype": "FP64", "shape": [-1]}]
