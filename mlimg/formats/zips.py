"""Formats that are zips: skops, Keras and what PyTorch saves."""

import json
import re
from pathlib import PurePosixPath
from typing import Final

from mlimg.formats.looks import Looks, claimed
from mlimg.peek import Peek, zip_members

_KERAS_METADATA: Final = "metadata.json"
# Both are in JSON that is not compressed, near the end of the file: the estimator's state of skops, the program's of
# torch.export.
_SKLEARN_VERSION: Final = re.compile(rb'"_sklearn_version": \{[^{}]{1,300}"content": "\\"([0-9][0-9a-z.+]{0,40})\\""')
_TORCH_VERSION: Final = re.compile(rb'"torch_version": "([0-9][0-9a-z.+]{0,40})"')


def zipped(ends: Peek) -> Looks | None:
    """By the names at the end of the zip."""
    if not ends.head.startswith(b"PK\x03\x04"):
        return None
    members = zip_members(ends, content_of=_KERAS_METADATA)
    if members is None:
        name = claimed(ends.path)
        return Looks(name, damage="it is a zip without its end") if name else None
    if "schema.json" in members:
        return Looks("skops", version=_found(_SKLEARN_VERSION, ends.tail))
    if "model.weights.h5" in members:
        return Looks("keras", version=_keras_version(members.get(_KERAS_METADATA)))
    return _torch(members, ends.tail)


def _keras_version(metadata: bytes | None) -> str:
    """https://github.com/keras-team/keras/blob/v3.11.0/keras/src/saving/saving_lib.py writes its own."""
    try:
        version = json.loads(metadata or b"{}").get("keras_version", "")
    except (ValueError, AttributeError):
        return ""
    return version if isinstance(version, str) else ""


def _torch(members: dict[str, bytes | None], tail: bytes) -> Looks | None:
    """PyTorch's zips have one folder around all; its name is that of the file."""
    names = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in members}
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return Looks("torchscript")
    if "archive_format" in names or "serialized_exported_program.json" in members:
        # PyTorch executes the guards that the program brings, and falls back to unpickling.
        return Looks("torch-export", version=_found(_TORCH_VERSION, tail), runs_code=True)
    if "data.pkl" in names or any(PurePosixPath(name).name in {"data.pkl", "version"} for name in members):
        return Looks("torch", runs_code=True)
    return None


def _found(pattern: re.Pattern[bytes], data: bytes) -> str:
    found = pattern.search(data)
    return found[1].decode() if found else ""
