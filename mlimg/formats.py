"""What a model file is, by its content. Names decide only between two words for the same bytes.

Only the ends of files are read and nothing is ever deserialised: that a file looks like a format does not make it
harmless, it says which server can be asked to load it.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final

from mlimg.peek import Peek, decompressed_head, peek, pickle_head, protobuf_fields, zip_names
from mlimg.runtime.errors import ModelError, printable
from mlimg.sources import Inventory, ModelSource, SourceFile

CUSTOM: Final = "custom"  # a framework or format that only the user's own handler knows
_PICKLES: Final = frozenset({"joblib", "pickle", "torch"})
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
}
_FRAMEWORKS: Final = {  # of formats that belong to one
    "skops": "sklearn",
    "torch": "pytorch",
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
_PICKLED_FRAMEWORKS: Final = {  # by the package whose class is pickled
    "sklearn": "sklearn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "torch": "pytorch",
}
_XGBOOST: Final = (  # format, how its files begin, how they end
    (
        "xgboost-json",
        rb'\s*\{\s*"learner"\s*:',
        rb'"version"\s*:\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]\s*\}\s*\Z',
    ),
    ("xgboost-ubj", rb"\{[iUIlL]\x00*\x07learner", rb"version\[#L\x00{7}\x03i(.)i(.)i(.)\}\Z"),
)


@dataclass(frozen=True, slots=True)
class Detected:
    """A model file and what it looks like.

    `damage` says why it cannot be loaded, where its ends show that; `version` is that of the framework which saved it,
    where the file says so.
    """

    framework: str
    format: str
    needs_pickle: bool
    path: PurePosixPath
    damage: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class _Looks:
    """What a recogniser saw."""

    format: str
    framework: str = ""
    damage: str = ""
    version: str = ""


def detect(source: ModelSource, inventory: Inventory, *, at_once: int = 1) -> tuple[Detected, ...]:
    """Name the model files among the source's, by path, looking at so many at once.

    Raises ModelError and LocalIOError for what cannot be read, and what else the source's files raise.
    """

    def look(file: SourceFile) -> Detected | None:
        with source.open(file.path) as opened:
            looks = _recognise(peek(file.path, file.size_bytes, opened))
        if not looks:
            return None
        framework = looks.framework or _FRAMEWORKS.get(looks.format, CUSTOM)
        return Detected(framework, looks.format, looks.format in _PICKLES, file.path, looks.damage, looks.version)

    if at_once == 1:
        return tuple(filter(None, map(look, inventory)))
    with ThreadPoolExecutor(at_once, thread_name_prefix="peek") as threads:
        looks = [threads.submit(look, file) for file in inventory]
        try:
            return tuple(filter(None, (done.result() for done in looks)))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def check_formats(
    detected: Sequence[Detected],
    template_formats: Sequence[str],
    *,
    allow_pickle: bool,
    template_frameworks: Sequence[str] = (),
    template_versions: Sequence[str] = (),
    served_by: Callable[[str], str | None] = lambda _format: None,
) -> Detected:
    """Choose the model's main file, of a format that the template serves (none or `any`: whatever it is).

    Several candidates are one model only where they are shards of one format. What a served format's file holds is of
    the template's framework, and of one of its `template_versions` where the file tells its own. `served_by` names a
    template for formats that this one does not serve. Raises ModelError.
    """
    if not template_formats or "any" in template_formats:
        _check_pickle([file for file in detected if file.needs_pickle and not file.damage], allow_pickle)
        sound = [file for file in detected if not file.damage]
        if len(sound) != 1:
            return Detected(CUSTOM, CUSTOM, any(file.needs_pickle for file in sound), PurePosixPath())
        return replace(sound[0], framework=CUSTOM)
    served = [file for file in detected if file.format in template_formats]
    if not served:
        raise _not_served(detected, template_formats, served_by)
    chosen = _main(served)
    if chosen.damage:
        raise ModelError(
            f"`{printable(str(chosen.path))}` is a damaged {chosen.format} file: {chosen.damage}",
            hint="save the model again, and let the copy finish",
        )
    _check_pickle([chosen] if chosen.needs_pickle else [], allow_pickle)
    _check_version(chosen, template_versions)
    # What is pickled may be a class of the user's: the template that loads the format says what it is served as.
    if template_frameworks and chosen.framework not in template_frameworks:
        return replace(chosen, framework=template_frameworks[0])
    return chosen


def _main(served: Sequence[Detected]) -> Detected:
    if len(served) == 1:
        return served[0]
    if {file.format for file in served} in ({"safetensors"}, {"gguf"}):  # large models come in shards
        return served[0]
    names = ", ".join(f"`{printable(str(file.path))}`" for file in served[:5])
    more = f" and {len(served) - 5} more" if len(served) > 5 else ""
    raise ModelError(
        f"the model has several files that could be it: {names}{more}",
        hint="let model.source name the one file",
    )


def _check_pickle(pickles: Sequence[Detected], allow_pickle: bool) -> None:
    if pickles and not allow_pickle:
        raise ModelError(
            f"`{printable(str(pickles[0].path))}` is a {pickles[0].format} file: loading it runs the code in it",
            hint="if you trust who made it, write `model.allow_pickle: true`; skops and ONNX files need no such trust",
        )


def _check_version(chosen: Detected, versions: Sequence[str]) -> None:
    if not chosen.version or not versions:
        return
    if any(chosen.version == version or chosen.version.startswith(f"{version}.") for version in versions):
        return
    wanted = " or ".join(versions)
    raise ModelError(
        f"`{printable(str(chosen.path))}` was saved by {chosen.framework} {chosen.version}; "
        f"the template serves models of {chosen.framework} {wanted}",
        hint=f"load it with {chosen.framework} {wanted} and save it again",
    )


def _not_served(
    detected: Sequence[Detected], formats: Sequence[str], served_by: Callable[[str], str | None]
) -> ModelError:
    wanted = " or ".join(", ".join(formats).rsplit(", ", 1))
    if not detected:
        return ModelError(
            f"no file of the model looks like {wanted}, which the template serves",
            hint="`mlimg templates` shows what each template serves; `python` serves anything by your own handler",
        )
    first = detected[0]
    looks = f"is damaged: {first.damage}" if first.damage else f"looks like {first.format}"
    other = served_by(first.format)
    return ModelError(
        f"`{printable(str(first.path))}` {looks}; the template serves {wanted}",
        hint=f"`server.template: {other}` serves it" if other else "`mlimg templates` shows what each template serves",
    )


def _recognise(ends: Peek) -> _Looks | None:
    for recogniser in _RECOGNISERS:
        if looks := recogniser(ends):
            return looks
    claimed = _SUFFIXES.get(ends.path.suffix.lower())
    if claimed is None:
        return None
    return _Looks(claimed, damage="it is empty" if not ends.size_bytes else f"its content is not that of {claimed}")


def _by_magic(ends: Peek) -> _Looks | None:
    for magic, offset, name in (
        (b"GGUF", 0, "gguf"),
        (b"CBM1", 0, "catboost"),
        (b"\x89HDF\r\n\x1a\n", 0, "hdf5"),
        (b"TFL3", 4, "tflite"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", 0, "torch"),  # before PyTorch 1.6
    ):
        if ends.head.startswith(magic, offset):
            return _Looks(name)
    return None


def _zip(ends: Peek) -> _Looks | None:
    if not ends.head.startswith(b"PK\x03\x04"):
        return None
    names = zip_names(ends.tail)
    if names is None:
        claimed = _SUFFIXES.get(ends.path.suffix.lower())
        return _Looks(claimed, damage="it is a zip without its end") if claimed else None
    if "schema.json" in names:
        return _Looks("skops")
    if "model.weights.h5" in names:
        return _Looks("keras")
    if any(PurePosixPath(name).name in {"data.pkl", "version"} for name in names):
        return _Looks("torch")
    return None


def _safetensors(ends: Peek) -> _Looks | None:
    """https://huggingface.co/docs/safetensors: eight bytes of length, then a JSON object of that length."""
    length = int.from_bytes(ends.head[:8], "little")
    if ends.head[8:9] != b"{" or length > 100_000_000:
        return None
    return _Looks("safetensors", damage="" if 8 + length <= ends.size_bytes else "it ends within its header")


def _xgboost(ends: Peek) -> _Looks | None:
    """https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html: an object of learner and, last, version."""
    for name, start, end in _XGBOOST:
        if re.match(start, ends.head):
            found = re.search(end, ends.tail, re.DOTALL)
            if not found:
                return _Looks(name, damage="it ends within the object")
            # UBJSON has each number in one byte.
            parts = [part.decode() if name == "xgboost-json" else str(part[0]) for part in found.groups()]
            return _Looks(name, version=".".join(parts))
    return None


def _lightgbm(ends: Peek) -> _Looks | None:
    """https://github.com/microsoft/LightGBM/blob/v4.6.0/src/boosting/gbdt_model_text.cpp: LightGBM 4 writes `v4`.

    Its parameters come last; after them Python's package adds the categories of pandas' columns, in one line.
    """
    found = re.match(rb"tree\nversion=v(\d{1,9})\n", ends.head)
    if not found:
        return None
    text = ends.tail.rstrip()
    last = text.rpartition(b"\n")[2]
    # The line may be longer than what was looked at.
    categories = last.startswith(b"pandas_categorical:") or last == text
    whole = (categories and last.endswith((b":null", b"]"))) or last == b"end of parameters"
    return _Looks("lightgbm", damage="" if whole else "it has no end", version=found[1].decode())


def _saved_model(ends: Peek) -> _Looks | None:
    """https://www.tensorflow.org/guide/saved_model: a folder around this file; its content has no mark."""
    if ends.path.name != "saved_model.pb" or not ends.head.startswith(b"\x08\x01\x12"):
        return None
    return _Looks("savedmodel")


def _onnx(ends: Peek) -> _Looks | None:
    """ModelProto of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: IR version 1, texts 2-4, 6, graph 7."""
    wire_types = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
    seen = []
    for number, wire_type, value, end in protobuf_fields(ends.head):
        if wire_types.get(number) != wire_type or (number == 1 and not 1 <= value < 100):
            return None
        seen.append(number)
        if number == 7 and seen[0] == 1:
            return _Looks("onnx", damage="" if end <= ends.size_bytes else "it ends within its graph")
    return None


def _pickle(ends: Peek) -> _Looks | None:
    compressed = decompressed_head(ends.head)
    head = ends.head if compressed is None else compressed
    pickled = pickle_head(head)
    if pickled is None:
        return None
    packages = [module.partition(".")[0] for module in pickled.modules]
    named_joblib = ends.path.suffix.lower() == ".joblib"
    by_joblib = compressed is not None or named_joblib or b"joblib.numpy_pickle" in head
    # A pickle's last byte is STOP, with or without joblib's arrays inside.
    cut = compressed is None and not pickled.complete and not ends.tail.endswith(b".")
    return _Looks(
        "joblib" if by_joblib else "pickle",
        framework=next((_PICKLED_FRAMEWORKS[name] for name in packages if name in _PICKLED_FRAMEWORKS), ""),
        damage="it has no end" if cut else "",
    )


_RECOGNISERS: Final[tuple[Callable[[Peek], _Looks | None], ...]] = (
    _by_magic,
    _zip,
    _safetensors,
    _xgboost,
    _lightgbm,
    _saved_model,
    _onnx,
    _pickle,
)
