"""What a recogniser sees in one file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

# Formats by the names people give such files: what a file with this name and other content claims to be.
_SUFFIXES: Final = {
    ".joblib": "joblib",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".skops": "skops",
    ".onnx": "onnx",
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".ubj": "xgboost-ubj",
    ".cbm": "catboost",
    ".keras": "keras",
    ".tflite": "tflite",
    ".pt": "torch",
    ".pth": "torch",
    ".pt2": "torch-export",
    ".lgb": "lightgbm",
}
_NAMES: Final = {"MLmodel": "mlflow", "saved_model.pb": "savedmodel"}
PART: Final = "part"  # of a model, and no model alone


@dataclass(frozen=True, slots=True)
class Looks:
    """What a file looks like by its own ends.

    `version` is that of the framework which saved it, `opset` that of ONNX's default operators. `runs_code` says that
    loading it runs code which comes with it, as a pickle does. `needs` has files and folders beside it, with how
    many bytes of them at least.
    """

    format: str
    framework: str = ""
    damage: str = ""
    version: str = ""
    opset: int = 0
    runs_code: bool = False
    needs: Mapping[str, int] = field(default_factory=dict)


def claimed(path: PurePosixPath) -> str | None:
    """The format that a file's name tells."""
    return _NAMES.get(path.name) or _SUFFIXES.get(path.suffix.lower())
