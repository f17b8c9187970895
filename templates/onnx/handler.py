"""Serves ONNX models with ONNX Runtime."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.devices import check_device
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.model_file import find_model_file
from mlimg.runtime.server.tensors import DTYPES, as_texts

# A ModelProto: its IR version, then a field that https://github.com/onnx/onnx/blob/main/onnx/onnx.proto has there.
HEAD = re.compile(rb"\x08[\x01-\x63][\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2\xca\xd2]")
DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
# What ZipMap, the last operator of converted scikit-learn classifiers, gives: a number for each class, for each row.
MAPS = re.compile(r"seq\(map\((int64|string),tensor\(float\)\)\)")
OPSET = re.compile(r"Opset (\d+) is under development.* support for domain (\S+) is till opset (\d+)")
IR_VERSION = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
ERRORS = (
    ort.EPFail,
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NoSuchFile,
    ort.NotImplemented,
    ort.RuntimeException,
    RuntimeError,
)
# What fails in a node is the input's fault, unless the machine is short of something.
IN_A_NODE = "while running"
SHORTAGE = re.compile(r"allocate|CUDA|CUDNN|CUBLAS|out of memory", re.IGNORECASE)


@dataclass(frozen=True)
class Model:
    """A session, which several threads may run, and what of it is known."""

    session: onnxruntime.InferenceSession
    inputs: Mapping[str, onnxruntime.NodeArg]
    outputs: Mapping[str, onnxruntime.NodeArg]


def load(model_dir: Path, options: Mapping[str, Any]) -> Model:
    """Load the one ONNX file in `model_dir`; ONNX Runtime reads the files it names."""
    path = find_model_file(model_dir, _looks_saved)
    onnxruntime.set_default_logger_severity(4)  # every failure is an exception, too
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = int(options.get("threads", 1))
    cuda = options.get("device") == "cuda"
    if cuda:
        onnxruntime.preload_dlls()
    providers = ["CUDAExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=providers)
    except ERRORS as error:
        raise _refusal(path, str(error)) from error
    check_device(options.get("device"), lambda: "CUDAExecutionProvider" in session.get_providers())
    inputs, outputs = session.get_inputs(), session.get_outputs()
    for node in [*inputs, *outputs]:
        if node.type not in DATATYPES and (node in inputs or not MAPS.fullmatch(node.type)):
            raise ModelError(f"{path.name}: `{node.name}` is a {node.type}, for which the protocol has no datatype")
    return Model(session, {node.name: node for node in inputs}, {node.name: node for node in outputs})


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the graph."""
    feed = {name: as_texts(array) for name, array in inputs.items()}
    try:
        values = model.session.run(list(model.outputs), feed)
    except ERRORS as error:
        text = str(error)
        if isinstance(error, ort.InvalidArgument) or (IN_A_NODE in text and not SHORTAGE.search(text)):
            raise InputError(f"the model refuses the input: {_reason(text)}") from error
        raise
    return {name: _array(value) for name, value in zip(model.outputs, values, strict=True)}


def signature(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the graph says; of ZipMap's classes only an answer tells."""
    inputs = [_tensor(node) for node in model.inputs.values()]
    maps = [name for name, node in model.outputs.items() if node.type not in DATATYPES]
    # A scalar and a tensor of any rank look the same.
    if not all(node.shape for name, node in model.outputs.items() if name not in maps):
        return inputs, []
    outputs = {name: _tensor(node) for name, node in model.outputs.items()}
    if maps:
        try:
            rows = model.session.run(maps, {spec["name"]: _sample(spec) for spec in inputs})
        except ERRORS:  # such a model takes no zeros
            return inputs, []
        for name, (row, *_) in zip(maps, rows, strict=True):
            outputs[name] |= {"shape": [-1, len(row)], "parameters": {"classes": list(row)}}
    return inputs, list(outputs.values())


def _tensor(node: onnxruntime.NodeArg) -> dict[str, Any]:
    """A tensor of the metadata: what is no number in ONNX's shape is a dimension of any length."""
    shape = [n if isinstance(n, int) and n > 0 else -1 for n in node.shape]
    return {"name": node.name, "datatype": DATATYPES.get(node.type, "FP32"), "shape": shape}


def _sample(spec: Mapping[str, Any]) -> np.ndarray:
    shape = [max(1, n) for n in spec["shape"]]
    if spec["datatype"] == "BYTES":
        return np.full(shape, "", np.object_)
    return np.zeros(shape, DTYPES[spec["datatype"]])


def _array(value: Any) -> np.ndarray:
    """A tensor as it is; of ZipMap's dictionaries, which are sorted by class, a row each."""
    return np.array([list(row.values()) for row in value], np.float32) if isinstance(value, list) else value


def _looks_saved(path: Path) -> bool:
    with path.open("rb") as file:
        return HEAD.match(file.read(3)) is not None


def _refusal(path: Path, text: str) -> ModelError:
    """The error of a file that ONNX Runtime does not load."""
    has = f"this server has ONNX Runtime {onnxruntime.__version__}"
    if found := OPSET.search(text):
        opset, domain, known = found.groups()
        return ModelError(
            f"{path.name} uses opset {opset} of {domain}; {has}, which knows opsets up to {known}",
            hint=f"export it with opset {known}, or require a newer onnxruntime in server.requirements",
        )
    if found := IR_VERSION.search(text):
        return ModelError(
            f"{path.name} is of ONNX's IR version {found[1]}; {has}, which knows versions up to {found[2]}",
            hint="save it with an older onnx, or require a newer onnxruntime in server.requirements",
        )
    if not path.stat().st_size:
        return ModelError(f"{path.name} is empty")
    if "NOT_IMPLEMENTED" in text or "is not a registered function/op" in text:
        return ModelError(f"{path.name} cannot be loaded: {has}; {_reason(text)}")
    hint = "the files that it names have to lie in the model's folder, whole" if "xternal" in text else ""
    return ModelError(f"{path.name} cannot be loaded: {_reason(text)}", hint=hint)


def _reason(text: str) -> str:
    """What ONNX Runtime says, without its codes and without its source's places, on one line."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?", "", " ".join(text.split()))
    text = re.sub(r"[\w/]+\.(h|cc):\d+ ([^()]*::[^()]*\([^()]*\) )?", "", text)
    text = re.sub(
        r"Non-zero status code returned while running (\w+) node\. Name:'.*?' Status Message: ", r"\1: ", text
    )
    return text[:200]
