"""Serves MLflow models through their python_function flavour, as `mlflow.pyfunc` answers."""

import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read on import

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel
from mlflow.types import DataType, Schema
from packaging.requirements import InvalidRequirement, Requirement

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.columns import check_lengths
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.tensors import DATATYPES, as_texts

log = logging.getLogger(__name__)
INPUT, OUTPUT = "input", "predict"  # of signatures that name none
INSTEAD = {"mlflow": "mlflow-skinny"}
COLUMNS = {
    DataType.boolean: "BOOL",
    DataType.integer: "INT32",
    DataType.long: "INT64",
    DataType.float: "FP32",
    DataType.double: "FP64",
    DataType.string: "BYTES",
    DataType.binary: "BYTES",
    DataType.datetime: "BYTES",
}
# A function that cloudpickle wrote down as the bytecode of one Python, which another one crashes on.
BYTECODE = re.compile(rb"_builtin_type.{0,16}CodeType", re.DOTALL)


@dataclass(frozen=True)
class Model:
    """What MLflow loaded, the schema of its inputs (a model may have none), and what the metadata tell of both."""

    function: Any
    schema: Schema | None
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


def load(model_dir: Path, options: Mapping[str, Any]) -> Model:
    """Load the one MLflow model in `model_dir`."""
    folders = [path.parent for path in sorted(model_dir.rglob("MLmodel"))]
    if len(folders) != 1:
        raise ModelError(f"expected one MLmodel file, found {len(folders)}", hint="serve the folder of one model")
    folder = folders[0]
    about = MlflowModel.load(folder)
    flavour = about.flavors.get("python_function")
    if not flavour:
        raise ModelError(f"{folder.name}/MLmodel has no python_function flavour", hint="save it with one that has")
    _check_versions(about.mlflow_version, folder / "requirements.txt")
    _check_python(flavour, folder)
    function = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    schema = about.get_input_schema()
    return Model(function, schema, _tensors(schema, INPUT), _tensors(about.get_output_schema(), OUTPUT))


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns are passed as a DataFrame, tensors as they are."""
    arguments = _arguments(model, inputs)
    try:
        answer = model.function.predict(arguments)
    except (MlflowException, ValueError) as error:  # so MLflow says that the input is not of the schema
        reason = str(error).rpartition("Error: ")[2]  # MLflow repeats the input before it
        raise InputError(f"the model refuses the input: {reason.partition(chr(10))[0][:200]}") from error
    if isinstance(answer, pd.DataFrame | dict):
        return {str(name): _array(answer[name]) for name in answer}
    return {model.outputs[0]["name"] if len(model.outputs) == 1 else OUTPUT: _array(answer)}


def signature(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The signature that the model was logged with."""
    return model.inputs, model.outputs


def warm_up(model: Model) -> None:
    """Ask what the model was logged with: zeros and empty texts may be nothing that it knows."""
    example = getattr(model.function, "input_example", None)
    if example is not None:
        model.function.predict(example)


def _tensors(schema: Schema | None, unnamed: str) -> list[dict[str, Any]]:
    specs = []
    for position, spec in enumerate(schema.inputs if schema else ()):
        name = spec.name or (unnamed if len(schema.inputs) == 1 else f"{unnamed}_{position}")
        if schema.is_tensor_spec():
            datatype = "BYTES" if spec.type.kind in "OSU" else DATATYPES.get(spec.type)
            shape = [int(length) for length in spec.shape]
        else:
            datatype, shape = COLUMNS.get(spec.type) if isinstance(spec.type, DataType) else None, [-1]
        if datatype is None:
            raise ModelError(
                f"`{name}` of the model's signature is of {spec.type!r}, which no tensor holds",
                hint="the python template serves it by a handler of yours",
            )
        optional = {} if getattr(spec, "required", True) else {"parameters": {"required": False}}
        specs.append({"name": name, "datatype": datatype, "shape": shape, **optional})
    return specs


def _arguments(model: Model, inputs: dict[str, np.ndarray]) -> Any:
    """What MLflow takes by the signature: a DataFrame, an array, or arrays by name."""
    schema = model.schema
    if schema and schema.is_tensor_spec():
        arrays = {name: as_texts(array) for name, array in inputs.items()}
        return arrays if schema.has_input_names() else arrays[INPUT]
    if not schema and len(inputs) == 1:
        return as_texts(next(iter(inputs.values())))
    check_lengths(inputs)
    if not schema:
        return pd.DataFrame({name: as_texts(array) for name, array in inputs.items()})
    kinds = zip((spec["name"] for spec in model.inputs), schema.input_types(), strict=True)
    # In the order of the signature: MLflow takes columns without names as they come.
    return pd.DataFrame({name: _column(name, inputs[name], kind) for name, kind in kinds if name in inputs})


def _column(name: str, array: np.ndarray, kind: DataType) -> Any:
    if kind is DataType.binary:
        return array
    if kind is not DataType.datetime:
        return as_texts(array)
    try:
        return pd.to_datetime(pd.Series(as_texts(array)), format="ISO8601").astype("datetime64[ns]")
    except ValueError:
        raise InputError(f"column `{name}` is a time, as text such as 2026-05-01T12:30:00") from None


def _array(values: Any) -> np.ndarray:
    array = values.to_numpy() if isinstance(values, pd.Series) else np.asarray(values)
    return np.datetime_as_string(array) if array.dtype.kind == "M" else array


def _check_versions(saved_by: str | None, requirements: Path) -> None:
    """Compare the installed packages with those that the model was saved with: another major version is refused."""
    for wanted in [f"mlflow=={saved_by}"] * bool(saved_by) + _lines(requirements):
        try:
            required = Requirement(wanted)
        except InvalidRequirement:  # an option or a path, which the build refuses
            continue
        if required.marker and not required.marker.evaluate():
            continue
        try:
            installed = metadata.version(INSTEAD.get(required.name.lower(), required.name))
        except metadata.PackageNotFoundError:
            raise ModelError(
                f"the model needs {wanted}, which this server does not have", hint="build the server for this model"
            ) from None
        pinned = re.fullmatch(r"===?(\d+)(\..*)?", str(required.specifier))
        if pinned and pinned[1] != installed.partition(".")[0]:
            raise ModelError(
                f"the model needs {wanted}, this server has {installed}", hint="build the server for this model"
            )
        if not required.specifier.contains(installed, prereleases=True):
            log.warning("the model needs %s, this server has %s", wanted, installed)


def _lines(requirements: Path) -> list[str]:
    """The requirements of a file that the build has read, without hashes."""
    if not requirements.is_file():
        return []
    text = re.sub(r"\\\r?\n", " ", requirements.read_text(encoding="utf-8-sig"))
    lines = (re.sub(r"(^|\s)(#|--hash).*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _check_python(flavour: Mapping[str, Any], folder: Path) -> None:
    """Refuse bytecode of another Python: loading it ends this one."""
    saved_by = str(flavour.get("python_version") or "")
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not saved_by or ".".join(saved_by.split(".")[:2]) == ours:
        return
    for key in ("python_model", "model_path", "data"):
        path = folder / str(flavour.get(key) or "")
        if path.is_file() and BYTECODE.search(path.read_bytes()):
            raise ModelError(
                f"{path.name} holds functions pickled by Python {saved_by}, this server has Python {ours}",
                hint="save the model from code, or set server.base to an image with its Python",
            )
    log.warning("the model was saved by Python %s, this server has %s", saved_by, ours)
