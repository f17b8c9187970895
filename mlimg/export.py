"""`mlimg render`: a build context on disk that `docker build` turns into the same image, with no mlimg at hand."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from mlimg.engine.base import resolve_base
from mlimg.material import Checked, check, list_model
from mlimg.means import Means
from mlimg.pack import PackedModel
from mlimg.plan import BaseImage, ServerPlan
from mlimg.publish import model_labels
from mlimg.release import make_plan, pack_model, separately
from mlimg.render import Context, render, render_with_model
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import ContextError, LocalIOError, ModelError
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile
from mlimg.runtime.reference import ImageReference
from mlimg.spec.load import LoadedSpec
from mlimg.spec.schema import Pattern

_README: Final = "README.md"
_WRITTEN: Final = "Written by `mlimg render`; build it here with "
_NAMES: Final = frozenset({"Dockerfile", _README, "build", "image", "models"})  # of all that it writes


def render_folder(loaded: LoadedSpec, means: Means, *, pattern: Pattern, folder: Path) -> Context:
    """Write the context of the server, and for in-image of the model too, into a new or empty `folder`.

    The folder appears whole or not at all. Raises ContextError when it holds something else, LocalIOError, and
    what the stages raise.
    """
    folder = folder.absolute()  # `.` has neither a name nor a parent
    if folder.exists() and not _is_ours(folder):
        raise ContextError(
            f"{folder}: holds what no earlier `mlimg render` wrote",
            hint="name a new folder",
        )
    checked = list_model(check(loaded), means.access, means.report)
    if pattern is Pattern.IN_IMAGE:
        (checked,) = separately(checked, pattern, means)
    plan = make_plan(checked, means, pattern=pattern, push=False)
    base = resolve_base(means.engine, plan.server.base_written, plan.server.platform)
    # No `--build-context` maps a private name there: FROM gets what anybody's engine understands.
    written = replace(base, pinned=_public_name(base), build_context=None)
    context = render(plan.server, written)
    packed = pack_model(checked, plan, means) if pattern is Pattern.IN_IMAGE else None
    with _replaced(folder) as scratch:
        _write(scratch, context, packed)
        if packed is not None:
            _write_model(scratch / "models", checked, packed)
        command = _command(plan.server, plan.image if pattern is Pattern.IN_IMAGE else plan.server.image)
        (scratch / _README).write_text(f"{_WRITTEN}`{command}`\n", encoding="utf-8")
    return context


def _public_name(base: BaseImage) -> str:
    return base.pinned if base.build_context is None else base.written


def _command(server: ServerPlan, tag: ImageReference) -> str:
    words = ["docker", "build", "--platform", str(server.platform), "--build-arg", "SOURCE_DATE_EPOCH=0"]
    for name in server.secrets:
        words += ["--secret", f"id={name},src={name.upper()}"]
    return " ".join([*words, "-t", str(tag), "."])


def _is_ours(folder: Path) -> bool:
    """Whether nothing is lost when the folder is replaced."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    names = {path.name for path in folder.iterdir()}
    readme = folder / _README
    return not names or (names <= _NAMES and readme.is_file() and readme.read_bytes().startswith(_WRITTEN.encode()))


def _write(folder: Path, context: Context, packed: PackedModel | None) -> None:
    dockerfile = render_with_model(context, model_labels(packed)) if packed is not None else context.dockerfile
    (folder / "Dockerfile").write_text(dockerfile, encoding="utf-8")
    for file in context.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(file.mode)


def _write_model(folder: Path, checked: Checked, packed: PackedModel) -> None:
    """Copy the model's files, checked against what was packed. Raises ModelError when one changed meanwhile."""
    executable = {file.path for file in checked.inventory if file.executable}
    for file in packed.manifest.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _copy(packed, file, path)
        path.chmod(0o755 if file.path in executable else 0o644)
    (folder / MANIFEST_NAME).write_bytes(packed.manifest_bytes)


def _copy(packed: PackedModel, file: ModelFile, path: Path) -> None:
    with packed.open(file.path) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, READ_SIZE_BYTES)
    if Digest.of_file(path) != file.sha256:
        raise ModelError(f"{file.path}: changed while it was read", hint="run again when nothing writes to it")


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Give a scratch folder beside `folder` that takes its place when all went well."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield scratch
            _normalise(scratch)
            if folder.exists():
                shutil.rmtree(folder)
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    except OSError as error:
        raise LocalIOError(f"{folder}: {error.strerror}") from error


def _normalise(folder: Path) -> None:
    """Zero the times and open the folders, whatever the umask: an engine copies both into layers."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.utime(Path(path, name), (0, 0))
        Path(path).chmod(0o755)
