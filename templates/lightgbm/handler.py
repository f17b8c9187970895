"""Serves LightGBM models that `save_model` wrote as text."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from lightgbm.basic import LightGBMError

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.columns import side_by_side
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.model_file import find_model_file

log = logging.getLogger(__name__)
HEAD = re.compile(rb"tree\nversion=v(\d{1,9})\n")
# The parameters come last; after them LightGBM for Python writes the categories of pandas' columns.
TAIL = re.compile(r"\nend of parameters\s*(\npandas_categorical:(null|\[.*\])\s*)?\Z")
CATEGORICAL = re.compile(r"^\[categorical_feature: (\d+(?:,\d+)*)\]$", re.MULTILINE)
NO_NAME = re.compile(r"Column_\d+")  # what LightGBM calls the columns of an array
INPUT = "input"
CLASSIFIERS = ("binary", "multiclass", "multiclassova")


@dataclass(frozen=True)
class Model:
    """A booster and how it is asked.

    `columns` are the features' names, else empty. `categories` has those of pandas' columns, with the numbers that
    stand for them in the trees.
    """

    booster: lightgbm.Booster
    method: str
    columns: tuple[str, ...]
    categories: Mapping[str, Mapping[Any, int]]
    classifies: bool
    threads: int


def load(model_dir: Path, options: Mapping[str, Any]) -> Model:
    """Load the one booster in `model_dir`."""
    lightgbm.register_logger(log)
    path = find_model_file(model_dir, _looks_saved)
    text = _read(path)
    try:
        booster = lightgbm.Booster(model_str=text)
    except (LightGBMError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error
    head = dict(line.split("=", 1) for line in text.partition("\n\n")[0].splitlines() if "=" in line)
    objective = head.get("objective", "an objective of its own").partition(" ")[0]
    method = str(options.get("method", "predict"))
    if method == "predict_proba" and objective not in CLASSIFIERS:
        raise ModelError(
            f"{path.name} was trained for {objective}, which gives no probabilities",
            hint="server.options.method says what is called",
        )
    names = booster.feature_name()
    return Model(
        booster=booster,
        method=method,
        columns=() if all(map(NO_NAME.fullmatch, names)) else tuple(names),
        categories=_categories(path, booster, head.get("feature_infos", "").split(" "), text),
        classifies=objective in CLASSIFIERS,
        threads=int(options.get("threads", 1)),
    )


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One tensor is the features of each row; several are a feature each."""
    if model.columns:
        numbers = {name: _numbers(array, model.categories.get(name)) for name, array in inputs.items()}
        rows = side_by_side(numbers, model.columns)
    else:
        rows = inputs[INPUT]
    try:
        return {model.method: _ask(model, rows)}
    except (LightGBMError, ValueError) as error:
        raise InputError(f"the model refuses the input: {_reason(error)}") from error


def signature(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The features that the model knows: 64-bit numbers, and texts where pandas' categories were texts."""
    width = model.booster.num_feature()
    inputs: list[dict[str, Any]] = [{"name": INPUT, "datatype": "FP64", "shape": [-1, width]}]
    if model.columns:
        inputs = [{"name": name, "shape": [-1], **_values(model.categories.get(name))} for name in model.columns]
    answer = _ask(model, np.zeros((1, width)))
    output: dict[str, Any] = {
        "name": model.method,
        "datatype": "INT64" if answer.dtype.kind == "i" else "FP64",
        "shape": [-1, *answer.shape[1:]],
    }
    if model.method == "predict_proba":
        output["parameters"] = {"classes": list(range(answer.shape[1]))}
    return inputs, [output]


def _ask(model: Model, rows: np.ndarray) -> np.ndarray:
    """What LGBMClassifier and LGBMRegressor answer."""
    values = np.asarray(model.booster.predict(rows, num_threads=model.threads))
    if not model.classifies:
        return values
    chances = np.column_stack([1 - values, values]) if values.ndim == 1 else values
    return chances if model.method == "predict_proba" else chances.argmax(axis=1).astype(np.int64)


def _values(categories: Mapping[Any, int] | None) -> dict[str, Any]:
    if categories is None:
        return {"datatype": "FP64"}
    texts = all(isinstance(category, str) for category in categories)
    return {"datatype": "BYTES" if texts else "FP64", "parameters": {"categories": list(categories)}}


def _numbers(array: np.ndarray, categories: Mapping[Any, int] | None) -> np.ndarray:
    """What the trees compare; a category that the training did not have is a missing value, as in pandas."""
    if categories is None:
        return array
    values = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in array.tolist()]
    return np.array([categories.get(value, np.nan) for value in values])


def _categories(path: Path, booster: lightgbm.Booster, infos: list[str], text: str) -> dict[str, dict[Any, int]]:
    """The categories of pandas' columns by the columns' names; the file lists them without."""
    listed = booster.pandas_categorical or []
    if not listed:
        return {}
    found = CATEGORICAL.search(text)  # LightGBM 4.6 does not tell it of a model that it read from text
    columns = [int(number) for number in found[1].split(",")] if found else []
    # A column's information names the numbers of the categories that the training saw, and -1 or `none`.
    seen = [[int(number) for number in re.findall(r"-?\d+", infos[column])] for column in columns]
    fits = len(listed) == len(columns) and all(
        max(numbers, default=0) < len(categories) for numbers, categories in zip(seen, listed, strict=True)
    )
    if not fits:
        raise ModelError(
            f"{path.name} does not tell which columns its {len(listed)} lists of categories belong to",
            hint="train it on the codes of ordered categories: `column.cat.codes`",
        )
    names = booster.feature_name()
    return {
        names[column]: {category: number for number, category in enumerate(categories)}
        for column, categories in zip(columns, listed, strict=True)
    }


def _looks_saved(path: Path) -> bool:
    with path.open("rb") as file:
        return HEAD.match(file.read(32)) is not None


def _read(path: Path) -> str:
    """The text of a whole file of this LightGBM's major version: its reader may not return from another."""
    data = path.read_bytes()
    if not data:
        raise ModelError(f"{path.name} is empty")
    start = HEAD.match(data)
    if not start:
        raise ModelError(f"{path.name} is no model that LightGBM's save_model writes")
    major = start[1].decode()
    if major != lightgbm.__version__.partition(".")[0]:
        raise ModelError(
            f"{path.name} was saved by LightGBM {major}, this server has {lightgbm.__version__}",
            hint=f"load it with LightGBM {lightgbm.__version__} and save it again",
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.name} is damaged: it is not UTF-8") from error
    if not TAIL.search(text):
        raise ModelError(f"{path.name} is damaged: it has no end")
    if not _trees_are_whole(data):
        raise ModelError(f"{path.name} is damaged: its trees are not of the sizes that it names")
    return text


def _trees_are_whole(data: bytes) -> bool:
    """Whether the trees follow each other as the head says: the reader goes astray or aborts where they do not."""
    sizes = re.search(rb"\ntree_sizes=([\d ]*)\n+", data)
    if not sizes:
        return False
    place = sizes.end()
    for number, size in enumerate(map(int, sizes[1].split())):
        if not data.startswith(b"Tree=%d\n" % number, place):
            return False
        place += size
    return data.startswith(b"end of trees\n", place)


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
