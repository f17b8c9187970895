"""Formats that are folders, each known by its one main file, and what the other files say of the whole."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Final

import yaml

from mlimg.formats.looks import PART, Looks
from mlimg.peek import Peek
from mlimg.runtime.errors import printable

# What PyYAML raises for a value that is not what its tag says.
_NOT_ITS_TYPE: Final = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
_CONFIG: Final = "config.json"
_SAFETENSORS: Final = ".safetensors"
_MODEL_KEY: Final = re.compile(rb'"(?:model_type|architectures)"\s*:')
_TRANSFORMERS_VERSION: Final = re.compile(rb'"transformers_version"\s*:\s*"([0-9][0-9a-z.+]{0,40})"')
_TOKENIZERS: Final = frozenset({"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"})


def transformers(ends: Peek) -> Looks | None:
    """The config of a Hugging Face folder; whether it is one, the safetensors beside it say (`settled`)."""
    if ends.path.name != _CONFIG:
        return None
    seen = ends.head
    if ends.size_bytes > len(ends.head):  # long for its labels' names
        seen += ends.tail
        whole = ends.tail.rstrip().endswith(b"}")
    else:
        whole = _is_json(ends.head)
    if not whole:
        return Looks("transformers", damage=_no_json(ends))
    version = _TRANSFORMERS_VERSION.search(seen)
    return Looks("transformers", version=version[1].decode() if version else "") if _MODEL_KEY.search(seen) else None


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def tokenizer(ends: Peek) -> Looks | None:
    """JSON that lies beside a config, where it is cut."""
    if ends.path.name not in _TOKENIZERS:
        return None
    whole = ends.head.lstrip()[:1] + ends.tail.rstrip()[-1:] in {b"{}", b"[]"}
    return None if whole else Looks(PART, damage=_no_json(ends))


def _no_json(ends: Peek) -> str:
    if not ends.size_bytes:
        return "it is empty"
    return "it has no end" if ends.head.lstrip().startswith(b"{") else "its content is not JSON"


def mlflow(ends: Peek) -> Looks | None:
    """https://mlflow.org/docs/latest/ml/model/#storage-format: `flavors`, each with the files it loads."""
    if ends.path.name != "MLmodel":
        return None
    model = _mlmodel(ends)
    if isinstance(model, str):
        return Looks("mlflow", damage=model)
    flavours = model.get("flavors")
    if not isinstance(flavours, dict) or not isinstance(function := flavours.get("python_function"), dict):
        return Looks("mlflow", damage="it has no flavour `python_function`")
    return Looks(
        "mlflow",
        version=_text(model, "mlflow_version"),
        runs_code=_brings_code(flavours, function),
        needs={path: 1 for key in ("model_path", "data", "python_model") if (path := _text(function, key))},
    )


class _Loader(yaml.SafeLoader):
    """Without merges (`<<`), which MLflow does not write: merges of merges copy beyond any memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a merge", key.start_mark)
        super().flatten_mapping(node)


def _mlmodel(ends: Peek) -> Mapping[str, Any] | str:
    """What the file says, or what is wrong with it."""
    if ends.size_bytes > len(ends.head):  # what is not seen may say something else
        return f"it is longer than {len(ends.head)} bytes"
    try:
        model = yaml.load(ends.head, _Loader)  # noqa: S506 (it is a safe one)
    except (yaml.YAMLError, *_NOT_ITS_TYPE):
        model = ""
    if not isinstance(model, dict):
        return "its content is not that of mlflow" if ends.size_bytes else "it is empty"
    # MLflow ends each line, and writes the time last; somebody's editor may do neither.
    whole = ends.head.endswith(b"\n") or "utc_time_created" in model
    return model if whole else "it ends within a line"


def _brings_code(flavours: Mapping[str, Any], function: Mapping[str, Any]) -> bool:
    """Whether loading runs code of the model, pickles apart: Python files, and classes that it tells skops to trust."""
    foreign = not _text(function, "loader_module").startswith("mlflow.")
    trusted = any(isinstance(flavour, dict) and flavour.get("skops_trusted_types") for flavour in flavours.values())
    return bool(foreign or trusted or function.get("code") or function.get("model_code_path"))


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def settled(looks: Mapping[PurePosixPath, Looks], sizes: Mapping[PurePosixPath, int]) -> dict[PurePosixPath, Looks]:
    """What files are, with what the others say: who misses a file that it needs is damaged.

    A part of a model that is not damaged is left out.
    """
    found = {}
    for path, look in looks.items():
        if look.format == "transformers" and not _safetensors_in(path.parent, sizes):
            continue
        damage = look.damage or next(_missing(path.parent, look, sizes), "")
        if look.format != PART or damage:
            found[path] = replace(look, damage=damage)
    return found


def _safetensors_in(folder: PurePosixPath, sizes: Mapping[PurePosixPath, int]) -> bool:
    return any(path.parent == folder and path.suffix == _SAFETENSORS for path in sizes)


def _missing(folder: PurePosixPath, look: Looks, sizes: Mapping[PurePosixPath, int]) -> Iterator[str]:
    for name, needed in look.needs.items():
        path, shown = folder / name, printable(name)
        if path not in sizes:
            if not any(other.is_relative_to(path) for other in sizes):
                yield f"`{shown}`, which it names, is not there"
        elif sizes[path] < needed:
            yield f"`{shown}`, which it names, is {sizes[path]} bytes of {needed}"
