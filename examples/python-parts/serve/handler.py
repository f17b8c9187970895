"""Serves the parts together: measurements are scaled, asked of both models, and named."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from parts import Logistic, Network, Scaling, read_json

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.errors import InputError

GROUPS = ("mean", "error", "worst")
WIDTH = 10


class Model:
    """All parts."""

    def __init__(self, folder: Path) -> None:
        self.scaling = Scaling.load(folder / "scaling.json")
        self.models = (Logistic.load(folder / "logistic.npz"), Network.load(folder / "network"))
        self.labels = np.array(read_json(folder / "labels.json"))


def load(model_dir: Path, options: Mapping[str, object]) -> Model:
    """Called once, before the server is ready."""
    try:
        return Model(model_dir)
    except (OSError, ValueError, KeyError) as error:  # a part is missing, or is not what its name says
        raise ModelError(f"a part of the model cannot be read: {error}") from error


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Called for each request, by several threads."""
    if len({len(inputs[name]) for name in GROUPS}) > 1:
        raise InputError(f"{', '.join(GROUPS)} are not of as many tumours")
    rows = model.scaling(np.hstack([inputs[name] for name in GROUPS]))
    each = np.column_stack([part(rows) for part in model.models])
    benign = each.mean(axis=1)
    return {"diagnosis": model.labels[(benign > 0.5).astype(int)], "benign": benign, "models": each}


def signature(model: Model) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """What the model's metadata says, and requests are checked against."""
    inputs: list[dict[str, object]] = [{"name": name, "datatype": "FP64", "shape": [-1, WIDTH]} for name in GROUPS]
    return inputs, [
        {"name": "diagnosis", "datatype": "BYTES", "shape": [-1]},
        {"name": "benign", "datatype": "FP64", "shape": [-1]},
        {"name": "models", "datatype": "FP64", "shape": [-1, len(model.models)]},
    ]
