"""Serves TensorFlow's SavedModels and Keras models."""

import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Read when TensorFlow is imported. Its errors are exceptions, too; that it has oneDNN it says on stderr at any level.
# Without oneDNN one thread computes about as fast: measured, convolutions a fifth slower, dense layers faster.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.devices import check_device
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.model_file import find_model_file
from mlimg.runtime.server.settings import usable_cpus

for noisy in ("tensorflow", "absl"):
    logging.getLogger(noisy).setLevel(logging.CRITICAL)

SAVED_MODEL = "saved_model.pb"
KERAS_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
DATATYPES = {
    tf.bool: "BOOL",
    tf.uint8: "UINT8",
    tf.uint16: "UINT16",
    tf.uint32: "UINT32",
    tf.uint64: "UINT64",
    tf.int8: "INT8",
    tf.int16: "INT16",
    tf.int32: "INT32",
    tf.int64: "INT64",
    tf.float16: "FP16",
    tf.float32: "FP32",
    tf.float64: "FP64",
    tf.string: "BYTES",
}


@dataclass(frozen=True)
class Model:
    """A function of named tensors; `kept` holds the variables that it uses."""

    call: Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]
    outputs: Mapping[str, tf.TensorSpec]
    kept: object


def load(model_dir: Path, options: Mapping[str, Any]) -> Model:
    """Load the one SavedModel or .keras file in `model_dir`."""
    path = find_model_file(model_dir, _looks_saved)
    threads = int(options.get("threads", 1))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # All requests share the threads between operations: of fewer, requests would wait for each other.
    tf.config.threading.set_inter_op_parallelism_threads(max(threads, usable_cpus()))
    check_device(options.get("device"), lambda: tf.config.list_physical_devices("GPU"))
    if not path.stat().st_size:
        raise ModelError(f"{path.name} is empty")
    if path.name == SAVED_MODEL:
        model = _saved_model(path, str(options.get("signature", "serving_default")))
    else:
        model = _keras(path)
    for name, spec in [*model.inputs.items(), *model.outputs.items()]:
        if not isinstance(spec, tf.TensorSpec) or spec.dtype not in DATATYPES:
            kind = getattr(spec, "dtype", spec)
            raise ModelError(f"{path.name}: `{name}` is {kind!r}, for which the protocol has no datatype")
    return model


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Call the function with the tensors by their names."""
    if inputs.keys() != model.inputs.keys():
        raise InputError(f"the model takes {', '.join(model.inputs)}")
    try:
        feed = {name: tf.constant(array, model.inputs[name].dtype) for name, array in inputs.items()}
        answer = model.call(feed)
    except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, ValueError, TypeError) as error:
        raise InputError(f"the model refuses the input: {_reason(error)}") from error
    return {name: tensor.numpy() for name, tensor in answer.items()}


def signature(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the function was traced with. Tensors of any rank cannot be told: then none are."""
    return _described(model.inputs), _described(model.outputs, least_rank=1)


def _described(specs: Mapping[str, tf.TensorSpec], least_rank: int = 0) -> list[dict[str, Any]]:
    if any(spec.shape.rank is None for spec in specs.values()):
        return []
    return [
        {
            "name": name,
            "datatype": DATATYPES[spec.dtype],
            # A scalar is answered as one element.
            "shape": [-1 if n is None else n for n in spec.shape] or [1] * least_rank,
        }
        for name, spec in specs.items()
    ]


def _saved_model(path: Path, name: str) -> Model:
    try:
        loaded = tf.saved_model.load(str(path.parent))
    except (OSError, ValueError, LookupError, AttributeError, RuntimeError, tf.errors.OpError) as error:
        raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error
    _check_version(path, "TensorFlow", loaded.tensorflow_version, tf.__version__)
    if name not in loaded.signatures:
        there = ", ".join(sorted(loaded.signatures)) or "none"
        raise ModelError(
            f"{path.name} has no signature `{name}`; it has {there}",
            hint="server.options.signature says which is called",
        )
    function = loaded.signatures[name]
    return Model(
        call=lambda tensors: function(**tensors),
        inputs=dict(sorted(function.structured_input_signature[1].items())),
        outputs=dict(sorted(function.structured_outputs.items())),
        kept=loaded,
    )


def _keras(path: Path) -> Model:
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("metadata.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelError(f"{path.name} is no whole .keras file: {_reason(error)}") from error
    _check_version(path, "Keras", str(metadata.get("keras_version", "")), keras.__version__)
    try:
        # Lambda layers are code: https://keras.io/api/models/model_saving_apis/model_saving_and_loading/
        loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, tf.errors.OpError) as error:
        raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error
    if not getattr(loaded, "inputs", None):
        raise ModelError(f"{path.name} does not say what its inputs are", hint="`model.export` writes a SavedModel")
    inputs = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in loaded.inputs}
    names = getattr(loaded, "output_names", None) or [loaded.layers[-1].name]
    if len(set(names)) < len(loaded.outputs):
        names = [f"output_{number}" for number in range(len(loaded.outputs))]

    @tf.function(autograph=False)
    def call(tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        given = [tensors[name] for name in inputs]
        packed = given[0] if len(given) == 1 else keras.tree.pack_sequence_as(loaded.input, given)
        return dict(zip(names, keras.tree.flatten(loaded(packed, training=False)), strict=True))

    function = call.get_concrete_function(inputs)
    outputs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in function.structured_outputs.items()
    }
    return Model(call=function, inputs=inputs, outputs=outputs, kept=loaded)


def _looks_saved(path: Path) -> bool:
    if path.name == SAVED_MODEL:
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist()) >= KERAS_MEMBERS


def _check_version(path: Path, framework: str, theirs: str, ours: str) -> None:
    if theirs and theirs.partition(".")[0] != ours.partition(".")[0]:
        raise ModelError(
            f"{path.name} was saved by {framework} {theirs}, this server has {ours}",
            hint=f"load it with {framework} {ours} and save it again",
        )


def _reason(error: Exception) -> str:
    """The first line of what TensorFlow says."""
    text = str(error).strip().strip("'\"")
    return " ".join(text.partition("\n")[0].split())[:200]
