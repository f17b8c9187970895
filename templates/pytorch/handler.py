"""Serves PyTorch modules: TorchScript, exported programs, and weights of a module that the user's code defines."""

import importlib
import inspect
import json
import logging
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils import _pytree as pytree

from mlimg.runtime.errors import ModelError
from mlimg.runtime.manifest import ModelManifest
from mlimg.runtime.server.devices import check_device
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.verify import read_manifest

SIGNATURE = "signature.json"
ARGUMENTS = "arguments.json"
OUTPUT = "output"
# The protocol has no bfloat16: such tensors come and go as FP32.
DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "FP32",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
SHORT_OF_MEMORY = "can't allocate memory"
# What PyTorch logs of a file that it cannot read is a traceback; the error says it in a line.
logging.getLogger("torch.export").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Model:
    """A module and how it is called: `pack` makes its arguments of the named inputs' tensors."""

    call: Callable[..., Any]
    names: tuple[str, ...]
    optional: frozenset[str]
    device: torch.device
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)  # of inputs, where known
    default_dtype: torch.dtype | None = None  # of the weights: what numbers with a fraction become, else
    pack: Callable[[Sequence[Any]], tuple[Sequence[Any], Mapping[str, Any]]] | None = None
    described: tuple[list[dict[str, Any]], list[dict[str, Any]]] | None = None


def load(model_dir: Path, options: Mapping[str, Any]) -> Model:
    """Load the one module in `model_dir`."""
    device = torch.device(str(options.get("device", "cpu")))
    check_device(device.type, torch.cuda.is_available)
    if threads := int(options.get("threads", 1)):
        torch.set_num_threads(threads)
    found = read_manifest(model_dir)
    kind, paths = _find(model_dir, found[0] if found else None)
    if kind == "torch-export":
        return _load_exported(paths[0], device)
    if kind == "torchscript":
        module = _torchscript(paths[0], device)
        arguments = [(item.name, item.has_default_value()) for item in module.forward.schema.arguments[1:]]
    else:
        module = _user_module(model_dir, paths, str(options.get("module") or "")).to(device)
        arguments = _arguments(module)
    module.eval()
    first = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)
    described = _read_signature(model_dir / SIGNATURE)
    return Model(
        call=module,
        names=tuple(name for name, _ in arguments),
        optional=frozenset(name for name, has_default in arguments if has_default),
        device=device,
        default_dtype=first,
        described=described,
    )


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Call the module with the tensors by their names."""
    if unknown := [name for name in inputs if name not in model.names]:
        raise InputError(f"unknown input `{unknown[0]}`: the model takes {', '.join(model.names)}")
    if missing := [name for name in model.names if name not in inputs and name not in model.optional]:
        raise InputError(f"input missing: {', '.join(missing)}")
    tensors = {name: _tensor(model, name, array) for name, array in inputs.items()}
    try:
        with torch.inference_mode():
            if model.pack:
                args, kwargs = model.pack([tensors[name] for name in model.names])
                answer = model.call(*args, **kwargs)
            else:
                answer = model.call(**tensors)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, IndexError, ValueError, TypeError) as error:
        if SHORT_OF_MEMORY in str(error):
            raise
        raise InputError(f"the model refuses the input: {_reason(error)}") from error
    return {name: _array(tensor) for name, tensor in _named(answer).items()}


def signature(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """What an exported program, or a signature.json beside the model, says; nothing else knows shapes."""
    return model.described


def _tensor(model: Model, name: str, array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind == "O":
        raise InputError(f"`{name}` is text: PyTorch takes numbers")
    # Requests are read-only, which PyTorch's tensors cannot be.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    dtype = model.dtypes.get(name) or (model.default_dtype if tensor.is_floating_point() else None)
    return tensor.to(model.device, dtype)


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _named(answer: Any) -> dict[str, Any]:
    """Names for what a module returned: a dict has its own."""
    if isinstance(answer, torch.Tensor):
        return {OUTPUT: answer}
    if isinstance(answer, list | tuple):
        answer = {f"{OUTPUT}_{number}": part for number, part in enumerate(answer)}
    if isinstance(answer, dict) and all(isinstance(part, torch.Tensor) for part in answer.values()):
        return {str(name): part for name, part in answer.items()}
    raise TypeError("the module returned neither a tensor nor a list or dict of tensors")


# Finding and reading


def _find(folder: Path, manifest: ModelManifest | None) -> tuple[str, list[Path]]:
    """The format and the files of the model; what the build said of it, where there was one, has to hold."""
    files = [folder / file.path for file in manifest.files] if manifest else sorted(folder.rglob("*"))
    kinds: dict[str, list[Path]] = {}
    for path in files:
        if path.is_file() and not path.name.startswith("."):
            kinds.setdefault(_kind(path), []).append(path)
    known = [kind for kind in ("torchscript", "torch-export", "safetensors") if kind in kinds]
    if len(known) != 1:
        names = ", ".join(path.name for paths in kinds.values() for path in paths) or "no file"
        few = "a file is empty or damaged, or" if not known else ""
        raise ModelError(
            f"expected one model as TorchScript, torch.export or safetensors, found {names}",
            hint=f"{few} a pickle of torch.save, which is not served".lstrip() if few else "serve a folder with one",
        )
    kind, paths = known[0], kinds[known[0]]
    if manifest and manifest.format != kind:
        raise ModelError(f"{paths[0].name} is {kind}: the model's manifest says {manifest.format}")
    if kind != "safetensors" and len(paths) > 1:
        raise ModelError(f"expected one model file, found {', '.join(path.name for path in paths[:5])}")
    return kind, paths


def _kind(path: Path) -> str:
    """The format of a file, by what is in it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in archive.namelist()}
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return "torchscript"
        return "torch-export" if "archive_format" in names else "other"
    with path.open("rb") as file:
        head = file.read(9)
    return "safetensors" if head[8:] == b"{" and path.suffix != ".json" else "other"


def _torchscript(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    try:
        module = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error
    return module


def _load_exported(path: Path, device: torch.device) -> Model:
    try:
        program = torch.export.load(path)
    except Exception as error:  # any, from its readers of zips, JSON and pickles
        raise ModelError(
            f"{path.name} cannot be loaded by PyTorch {torch.__version__}: {_reason(error)}",
            hint="export it with this version of PyTorch, or require the version that exported it",
        ) from error
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass  # noqa: PLC0415 (only here)

        program = move_to_device_pass(program, device)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    names = program.graph_signature.user_inputs
    if not all(isinstance(name, str) and isinstance(values.get(name), torch.Tensor) for name in names):
        raise ModelError(f"{path.name} takes an input that is no tensor")
    spec = program.call_spec.in_spec
    returned = [values.get(name) for name in program.graph_signature.user_outputs]
    try:
        outputs = _named(pytree.tree_unflatten(returned, program.call_spec.out_spec))
    except TypeError as error:
        raise ModelError(f"{path.name} returns neither a tensor nor a list or dict of tensors") from error
    return Model(
        call=program.module(),
        names=tuple(names),
        optional=frozenset(),
        device=device,
        dtypes={name: values[name].dtype for name in names},
        pack=lambda tensors: pytree.tree_unflatten(tensors, spec),
        described=(
            [_describe(name, values[name]) for name in names],
            [_describe(name, value) for name, value in outputs.items()],
        ),
    )


def _describe(name: str, value: torch.Tensor) -> dict[str, Any]:
    if value.dtype not in DATATYPES:
        raise ModelError(f"`{name}` is a {value.dtype}, for which the protocol has no datatype")
    # A length that the program leaves open is a symbol, not a number.
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return {"name": name, "datatype": DATATYPES[value.dtype], "shape": shape}


def _user_module(folder: Path, weights: Sequence[Path], name: str) -> torch.nn.Module:
    """Make the module that the user's code defines, and give it the weights, which have to fit."""
    if not name:
        raise ModelError(
            f"{weights[0].name} holds weights alone",
            hint="server.options.module names the module they are for, such as `net:Net`, in server.code",
        )
    file, _, made_by = name.partition(":")
    try:
        make = getattr(importlib.import_module(file), made_by)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"server.options.module `{name}` cannot be imported: {_reason(error)}",
            hint="write FILE:CLASS, where FILE.py lies in server.code",
        ) from error
    path = folder / ARGUMENTS
    try:
        arguments = json.loads(path.read_bytes()) if path.is_file() else {}
        module = make(**arguments)
    except (ValueError, TypeError) as error:
        raise ModelError(f"`{name}` cannot be made with {path.name}: {_reason(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"`{name}` makes {type(module).__name__}, which is no torch.nn.Module")
    tensors: dict[str, torch.Tensor] = {}
    for part in weights:
        try:
            tensors |= load_file(part)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{part.name} cannot be loaded: {_reason(error)}") from error
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ModelError(f"{weights[0].name} does not fit `{name}`: {_reason(error, skip=1)}") from error
    return module


def _arguments(module: torch.nn.Module) -> list[tuple[str, bool]]:
    """The names of what `forward` takes, and whether each may be left out."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters.values()
    return [(item.name, item.default is not item.empty) for item in parameters if item.kind in kinds]


def _read_signature(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
        return list(value["inputs"]), list(value.get("outputs", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f'{path.name} is not {{"inputs": […], "outputs": […]}}: {_reason(error)}') from error


def _reason(error: Exception, skip: int = 0) -> str:
    """The line of what PyTorch says that tells most, without places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript quotes the program first, and says at the end what went wrong.
    at_the_end = [line for line in lines if line.startswith("RuntimeError: ")]
    text = at_the_end[-1] if at_the_end else next(iter(lines[skip:] or lines), type(error).__name__)
    text = re.sub(r"^(RuntimeError: |\[enforce fail at \S+\] \. )", "", text)
    return text.partition(" This is an internal miniz error")[0][:200]
