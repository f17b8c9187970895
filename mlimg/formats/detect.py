"""What the files of a model are, each by its content and all by what they say of each other."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final

from mlimg.formats import boosters, checkpoints, folders, graphs, pickles, tensors, zips
from mlimg.formats.gguf import gguf
from mlimg.formats.looks import PART, Looks, claimed
from mlimg.peek import Peek, peek
from mlimg.sources import Inventory, ModelSource, SourceFile

CUSTOM: Final = "custom"  # a framework or format that only the user's own handler knows
FOLDERS: Final = frozenset({"mlflow", "savedmodel", "transformers"})  # what lies below their main file belongs to them
MAIN_FILES: Final = ("MLmodel", "saved_model.pb", "config.json")
OBJECTS: Final = frozenset({"joblib", "pickle", "skops"})  # of whatever framework
_FRAMEWORKS: Final = {  # of formats that belong to one
    "skops": "sklearn",
    "torch": "pytorch",
    "torchscript": "pytorch",
    "torch-export": "pytorch",
    "transformers": "transformers",
    "mlflow": "mlflow",
    "onnx": "onnx",
    "gguf": "llama.cpp",
    "xgboost-json": "xgboost",
    "xgboost-ubj": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "keras": "keras",
    "hdf5": "keras",
    "savedmodel": "tensorflow",
    "tflite": "tensorflow",
}
_RECOGNISERS: Final[tuple[Callable[[Peek], Looks | None], ...]] = (
    tensors.by_magic,
    gguf,
    zips.zipped,
    tensors.safetensors,
    tensors.shards,
    boosters.xgboost,
    boosters.lightgbm,
    graphs.saved_model,
    checkpoints.variables,
    folders.mlflow,
    folders.transformers,
    folders.tokenizer,
    graphs.onnx,
    pickles.pickled,
)


@dataclass(frozen=True, slots=True)
class Detected:
    """A model file and what it looks like. Of a format that is a folder, it is the folder's main file.

    `damage` says why it cannot be loaded, where that shows; `version` is that of the framework which saved it, where
    the file says so, and `opset` of ONNX's own operators. `notes` are for who serves it.
    """

    framework: str
    format: str
    needs_pickle: bool
    path: PurePosixPath
    damage: str = ""
    version: str = ""
    opset: int = 0
    notes: tuple[str, ...] = ()


def detect(source: ModelSource, inventory: Inventory, *, at_once: int = 1) -> tuple[Detected, ...]:
    """Name the model files among the source's, by path, looking at so many at once.

    A file that is only a part of a model is among them where it is damaged. Raises ModelError and LocalIOError for
    what cannot be read, and what else the source's files raise.
    """

    def look(file: SourceFile) -> Looks | None:
        with source.open(file.path) as opened:
            return _recognise(peek(file.path, file.size_bytes, opened))

    looks = _looks(look, inventory, at_once)
    seen = {file.path: found for file, found in zip(inventory, looks, strict=True) if found}
    sizes = {file.path: file.size_bytes for file in inventory}
    found = [_detected(path, one) for path, one in folders.settled(seen, sizes).items()]
    return tuple(replace(one, needs_pickle=True) if running_code(one, found) else one for one in found)


def _looks(look: Callable[[SourceFile], Looks | None], files: Iterable[SourceFile], at_once: int) -> list[Looks | None]:
    if at_once == 1:
        return [look(file) for file in files]
    with ThreadPoolExecutor(at_once, thread_name_prefix="peek") as threads:
        looking = [threads.submit(look, file) for file in files]
        try:
            return [done.result() for done in looking]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _recognise(ends: Peek) -> Looks | None:
    for recogniser in _RECOGNISERS:
        if looks := recogniser(ends):
            return looks
    name = claimed(ends.path)
    if name is None:
        return None
    return Looks(name, damage="it is empty" if not ends.size_bytes else f"its content is not that of {name}")


def _detected(path: PurePosixPath, looks: Looks) -> Detected:
    framework = looks.framework or _FRAMEWORKS.get(looks.format, CUSTOM)
    return Detected(framework, looks.format, looks.runs_code, path, looks.damage, looks.version, looks.opset)


def models(detected: Sequence[Detected]) -> list[Detected]:
    """Those that are models themselves: neither parts, nor below the main file of a folder."""
    mains = [file for file in detected if file.format in FOLDERS]
    return [
        file
        for file in detected
        if file.format != PART and not any(main != file and within(file, main) for main in mains)
    ]


def running_code(main: Detected, detected: Sequence[Detected]) -> list[Detected]:
    """The files whose code runs when a model is loaded, the main file last.

    MLflow's flavours load whatever they saved; of other folders nothing of the kind is.
    """
    saved = [file for file in detected if main.format == "mlflow" and within(file, main) and file != main]
    found = [file for file in saved if file.needs_pickle]
    return [*found, main] if main.needs_pickle else found


def within(file: Detected, main: Detected) -> bool:
    """Whether a file belongs to the folder whose main file this is."""
    return main.format in FOLDERS and file.path.is_relative_to(main.path.parent)
