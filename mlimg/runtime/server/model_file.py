"""The one file that a model is, for handlers whose framework loads one: found by its content, as the build finds it."""

from collections.abc import Callable
from pathlib import Path

from mlimg.runtime.errors import ModelError
from mlimg.runtime.verify import read_manifest


def find_model_file(folder: Path, looks_right: Callable[[Path], bool]) -> Path:
    """The file in `folder`, at any depth, whose content looks right, or the only file there is. Raises ModelError.

    Where there is a manifest only what it names counts: nothing else has been verified.
    """
    if manifest := read_manifest(folder):
        files = [folder / file.path for file in manifest[0].files]
    else:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    found = [path for path in files if looks_right(path)] or files
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "no file"
        raise ModelError(f"expected one model file, found {names}", hint="serve a folder with one")
    return found[0]


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
