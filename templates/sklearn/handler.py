"""Serves scikit-learn estimators and pipelines saved by joblib, pickle or skops."""

import logging
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.pipeline import Pipeline

from mlimg.runtime.errors import ModelError
from mlimg.runtime.manifest import ModelManifest
from mlimg.runtime.server.columns import check_lengths
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.model_file import find_model_file
from mlimg.runtime.server.tensors import DATATYPES, as_tensor, as_texts
from mlimg.runtime.verify import read_manifest

log = logging.getLogger(__name__)
ZIP = b"PK\x03\x04"  # what skops writes
# How what joblib, pickle and skops write begins: pickles of protocol 2 and up, a zip, and joblib's compressions.
HEADS = (
    b"\x80",
    ZIP,
    b"\x1f\x8b",
    b"x\x01",
    b"x\x5e",
    b"x\x9c",
    b"x\xda",
    b"BZh",
    b"\xfd7zXZ",
    b"]\0\0",
    b"\x04\x22M\x18",
)
INPUT = "input"


@dataclass(frozen=True)
class Model:
    """An estimator and how it is called. `columns` are those of the DataFrame it was trained on, else empty."""

    estimator: Any
    method: str
    columns: tuple[str, ...]


def load(model_dir: Path, options: Mapping[str, Any]) -> Model:
    """Load the one estimator in `model_dir`."""
    path = find_model_file(model_dir, _looks_saved)
    estimator = _load_skops(path) if _head(path).startswith(ZIP) else _load_pickle(path, read_manifest(model_dir))
    method = str(options.get("method", "predict"))
    if not callable(getattr(estimator, method, None)):
        raise ModelError(
            f"{path.name} holds {type(estimator).__name__}, which has no {method}",
            hint="server.options.method says what is called",
        )
    names = getattr(estimator, "feature_names_in_", ())
    if len(names) and not find_spec("pandas"):
        raise ModelError(
            f"{path.name} was trained on named columns, and this server has no pandas",
            hint="build the server with server.options.dataframes: true",
        )
    if len(names):
        import_module("pandas")  # half a second that no request should wait for, nor a server of plain arrays
    return Model(estimator, method, tuple(str(name) for name in names))


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One tensor is passed as an array, columns as a DataFrame."""
    try:
        answer = getattr(model.estimator, model.method)(_table(model, inputs))
    except (TypeError, ValueError) as error:  # so scikit-learn says that rows are not what the estimator was trained on
        raise InputError(f"the model refuses the input: {str(error).partition(chr(10))[0][:200]}") from error
    if isinstance(answer, list):  # predict_proba of several targets
        return {f"{model.method}_{number}": np.asarray(part) for number, part in enumerate(answer)}
    return {model.method: np.asarray(answer)}


def signature(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the fitted estimator remembers of its training data."""
    first = _first_steps(model.estimator)
    inputs: list[dict[str, Any]] = []
    known = {"datatype": "FP64"} if all(map(_is_numeric, first)) else {}
    if model.columns:
        inputs = [{"name": name, "shape": [-1], **known} for name in model.columns]
    elif all(type(step).__module__ == "sklearn.feature_extraction.text" for step in first):
        inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
    elif hasattr(model.estimator, "n_features_in_"):
        inputs = [{"name": INPUT, "shape": [-1, int(model.estimator.n_features_in_)], **known}]
    return inputs, _outputs(model, inputs)


def _outputs(model: Model, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    outputs = _answered(model, inputs)
    classes = getattr(model.estimator, "classes_", None)
    if not isinstance(classes, np.ndarray):
        return outputs
    if model.method == "predict_proba":
        outputs = outputs or [{"name": model.method, "datatype": "FP64", "shape": [-1, len(classes)]}]
        return [{**output, "parameters": {"classes": classes.tolist()}} for output in outputs]
    if outputs or _may_give_several_labels(model.estimator):
        return outputs
    return [{"name": model.method, "datatype": DATATYPES.get(classes.dtype, "BYTES"), "shape": [-1]}]


def _answered(model: Model, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs of a row of zeros or of an empty text: how many targets there are, only the answer tells."""
    if not inputs or any("datatype" not in entry for entry in inputs):
        return []
    try:
        answer = predict(model, {entry["name"]: _sample(entry) for entry in inputs})
        arrays = {name: as_tensor(array) for name, array in answer.items()}
    except Exception:  # whatever an estimator makes of what it was not trained on
        return []
    return [
        {"name": name, "datatype": DATATYPES[array.dtype], "shape": [-1, *array.shape[1:]]}
        for name, array in arrays.items()
    ]


def _sample(entry: Mapping[str, Any]) -> np.ndarray:
    return np.array([b""], np.object_) if entry["datatype"] == "BYTES" else np.zeros((1, *entry["shape"][1:]))


def _first_steps(estimator: Any) -> list[Any]:
    """The steps that see the input: pipelines, searches, ensembles and the like pass it on."""
    inner: list[Any] = []
    if isinstance(estimator, Pipeline):
        inner = [estimator.steps[0][1]]
    elif type(estimator).__module__.startswith("sklearn."):
        one = getattr(estimator, "best_estimator_", getattr(estimator, "estimator", None))
        inner = [part for _, part in getattr(estimator, "estimators", ())] if one is None else [one]
    return [step for part in inner for step in _first_steps(part)] or [estimator]


def _is_numeric(step: Any) -> bool:
    """Whether a step surely takes numbers: encoders, column transformers and foreign classes may take text."""
    module = type(step).__module__
    if module.startswith("sklearn.impute"):
        return getattr(step, "strategy", "mean") in ("mean", "median")
    if hasattr(step, "categorical_features"):  # of boosting by histograms; None says that the training had none
        return getattr(step, "is_categorical_", step) is None
    may_take_text = ("compose", "dummy", "feature_extraction", "pipeline")
    may_take_text += tuple(f"preprocessing._{part}" for part in ("encoders", "function_transformer", "target"))
    return module.startswith("sklearn.") and not module.startswith(tuple(f"sklearn.{part}" for part in may_take_text))


def _may_give_several_labels(estimator: Any) -> bool:
    """Whether a classifier may have been trained on several labels a row, which its classes do not tell."""
    last = getattr(estimator, "best_estimator_", estimator)
    while isinstance(last, Pipeline):
        last = last.steps[-1][1]
    return hasattr(last, "label_binarizer_") or hasattr(last, "_label_binarizer")


def _table(model: Model, inputs: dict[str, np.ndarray]) -> Any:
    arrays = {name: as_texts(array) for name, array in inputs.items()}
    if not model.columns and len(arrays) == 1:
        return next(iter(arrays.values()))
    if not find_spec("pandas"):
        raise InputError("this server takes one tensor: it has no pandas to make a table of several")
    import pandas as pd  # noqa: PLC0415 (25 MiB that servers of plain arrays do without)

    names = model.columns or tuple(arrays)
    columns = {name: _column(name, arrays[name]) for name in names}
    check_lengths(columns)
    return pd.DataFrame(columns)


def _column(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array.ravel()
    if array.ndim != 1:
        raise InputError(f"column `{name}` has the shape {list(array.shape)}: expected [n] or [n, 1]")
    return array


def _looks_saved(path: Path) -> bool:
    return _head(path).startswith(HEADS)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _load_skops(path: Path) -> Any:
    import skops.io  # noqa: PLC0415 (a second that other models need not wait for)

    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path.name} is damaged: it is a zip without its end")
    unknown = skops.io.get_untrusted_types(file=path)
    if unknown:
        raise ModelError(
            f"{path.name} holds types that skops does not trust: {', '.join(unknown[:5])}",
            hint="save the model with joblib and build it with model.allow_pickle, if you trust where it comes from",
        )
    return skops.io.load(path)


def _load_pickle(path: Path, manifest: tuple[ModelManifest, bytes] | None) -> Any:
    """Unpickle, which runs what the file says: the build allowed it when it wrote `joblib` or `pickle`."""
    if not path.stat().st_size:
        raise ModelError(f"{path.name} is empty")
    if manifest and manifest[0].format not in ("joblib", "pickle"):
        raise ModelError(f"{path.name} is a pickle, which the model's manifest does not say")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator = joblib.load(path)
    versions = {
        warning.message.original_sklearn_version
        for warning in caught
        if isinstance(warning.message, InconsistentVersionWarning)
    }
    for version in sorted(versions):
        _compare_versions(path, version)
    return estimator


def _compare_versions(path: Path, version: str) -> None:
    text = f"{path.name} was saved by scikit-learn {version}, this server has {sklearn.__version__}"
    hint = f"put scikit-learn=={version} into server.requirements"
    if version.partition(".")[0] != sklearn.__version__.partition(".")[0]:
        raise ModelError(text, hint=hint)
    log.warning("%s: %s", text, hint)
