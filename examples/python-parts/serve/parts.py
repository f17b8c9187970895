"""The parts of the model: each is read from a file or folder of its own, and applied to rows."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


@dataclass(frozen=True)
class Scaling:
    """Brings measurements of any unit to the same scale."""

    means: np.ndarray
    deviations: np.ndarray

    @classmethod
    def load(cls, path: Path) -> "Scaling":
        numbers = read_json(path)
        return cls(np.array(numbers["means"]), np.array(numbers["deviations"]))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.means) / self.deviations


@dataclass(frozen=True)
class Logistic:
    """A logistic regression."""

    weights: np.ndarray
    intercept: float

    @classmethod
    def load(cls, path: Path) -> "Logistic":
        with np.load(path) as arrays:
            return cls(arrays["weights"], float(arrays["intercept"]))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return sigmoid(rows @ self.weights + self.intercept)


@dataclass(frozen=True)
class Network:
    """Layers of weights and offsets, with what is negative cut off between them."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def load(cls, folder: Path) -> "Network":
        count = len(list(folder.glob("weights-*.npy")))
        names = ("weights", "offsets")
        return cls(tuple(tuple(np.load(folder / f"{name}-{n}.npy") for name in names) for n in range(count)))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        *hidden, (weights, offsets) = self.layers
        for inner_weights, inner_offsets in hidden:
            rows = np.maximum(rows @ inner_weights + inner_offsets, 0)
        return sigmoid(rows @ weights + offsets)[:, 0]
