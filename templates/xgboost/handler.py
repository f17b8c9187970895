"""Serves XGBoost models that `save_model` wrote as JSON or UBJSON."""

import json
import re
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from xgboost.core import XGBoostError

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.columns import side_by_side
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.model_file import find_model_file

HEAD = re.compile(rb'\s*\{\s*"learner"|\{[iUIlL]\x00*\x07learner')
# The version of the XGBoost that saved the model is the last thing in the file, in JSON and in UBJSON.
TAIL = re.compile(rb'"version"\s*:\s*\[\s*(\d{1,9})[\s\d,]*\]\s*\}\s*\Z|version\[#L\x00{7}\x03i(.)i.i.\}\Z', re.DOTALL)
TAIL_BYTES = 1024
INPUT = "input"
CLASSIFIERS = ("binary:logistic", "multi:softprob", "multi:softmax")


@dataclass(frozen=True)
class Model:
    """A booster and how it is asked. `columns` are the features' names, else empty."""

    booster: xgboost.Booster
    method: str
    columns: tuple[str, ...]
    kind: str  # `binary` or `multi` of classifiers, else `value`
    threads: int
    trees: tuple[int, int]
    guard: AbstractContextManager[Any]


def load(model_dir: Path, options: Mapping[str, Any]) -> Model:
    """Load the one booster in `model_dir`."""
    path = find_model_file(model_dir, _looks_saved)
    booster = _load(path)
    method, threads = str(options.get("method", "predict")), int(options.get("threads", 1))
    learner = json.loads(booster.save_config())["learner"]
    objective = learner["learner_train_param"]["objective"]
    if method == "predict_proba" and objective not in CLASSIFIERS:
        raise ModelError(
            f"{path.name} was trained for {objective}, which gives no probabilities",
            hint="server.options.method says what is called",
        )
    if objective == "multi:softmax":
        objective = "multi:softprob"  # the same trees; it tells more than the number of the class
    booster.set_param({"objective": objective, "device": "cpu", "nthread": threads})
    linear = learner["gradient_booster"]["name"] == "gblinear"
    best = booster.attr("best_iteration")
    return Model(
        booster=booster,
        method=method,
        columns=tuple(booster.feature_names or ()),
        kind=objective.partition(":")[0] if objective in CLASSIFIERS else "value",
        threads=threads,
        # Of a model that stopped early the best trees answer, as in XGBoost's scikit-learn interface.
        trees=(0, int(best) + 1) if best is not None and not linear else (0, 0),
        # Trees may be asked by several threads, a linear booster may not:
        # https://xgboost.readthedocs.io/en/stable/prediction.html#thread-safety
        guard=threading.Lock() if linear else nullcontext(),
    )


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One tensor is the features of each row; several are a feature each."""
    rows = side_by_side(inputs, model.columns) if model.columns else inputs[INPUT]
    try:
        values = _ask(model, rows)
    except (XGBoostError, ValueError) as error:
        raise InputError(f"the model refuses the input: {_reason(error)}") from error
    return {model.method: values}


def signature(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The features that the model knows, all of which XGBoost computes with as 32-bit numbers."""
    width = model.booster.num_features()
    inputs: list[dict[str, Any]] = [{"name": INPUT, "datatype": "FP32", "shape": [-1, width]}]
    if model.columns:
        inputs = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in model.columns]
    answer = _ask(model, np.zeros((1, width), np.float32))
    output: dict[str, Any] = {
        "name": model.method,
        "datatype": "INT64" if answer.dtype.kind == "i" else "FP32",
        "shape": [-1, *answer.shape[1:]],
    }
    if model.method == "predict_proba":
        output["parameters"] = {"classes": list(range(answer.shape[1]))}
    return inputs, [output]


def _ask(model: Model, rows: np.ndarray) -> np.ndarray:
    """What XGBClassifier and XGBRegressor answer."""
    booster = model.booster
    matrix = xgboost.DMatrix(
        rows,
        feature_names=booster.feature_names,
        feature_types=booster.feature_types,
        enable_categorical=True,
        nthread=model.threads or None,
    )
    with model.guard:
        values: np.ndarray = booster.predict(matrix, iteration_range=model.trees)
    if model.kind == "value":
        return values
    if model.method == "predict_proba":
        return np.column_stack([1 - values, values]) if values.ndim == 1 else values
    if model.kind == "binary":  # of one label, or of several side by side
        return (values > 0.5).astype(np.int64)
    return values.argmax(axis=1).astype(np.int64)


def _looks_saved(path: Path) -> bool:
    with path.open("rb") as file:
        return HEAD.match(file.read(TAIL_BYTES)) is not None


def _load(path: Path) -> xgboost.Booster:
    """Load a whole file of this XGBoost's major version: its reader goes past the end of a cut one."""
    data = bytearray(path.read_bytes())
    if not data:
        raise ModelError(f"{path.name} is empty")
    if not HEAD.match(data):
        raise ModelError(f"{path.name} is no model that XGBoost's save_model writes")
    end = TAIL.search(data, max(0, len(data) - TAIL_BYTES))
    if not end:
        raise ModelError(f"{path.name} is damaged: it ends within the object")
    major = end[1].decode() if end[1] else str(end[2][0])
    if major != xgboost.__version__.partition(".")[0]:
        raise ModelError(
            f"{path.name} was saved by XGBoost {major}, this server has {xgboost.__version__}",
            hint=f"load it with XGBoost {xgboost.__version__} and save it again",
        )
    booster = xgboost.Booster()
    try:
        booster.load_model(data)
    except XGBoostError as error:
        raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error
    return booster


def _reason(error: Exception) -> str:
    """The first line of what XGBoost says, without its time and place in its source."""
    return re.sub(r"^\[[\d:]+\] \S+: ", "", str(error).partition("\n")[0])[:200]
