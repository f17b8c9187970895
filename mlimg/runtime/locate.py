"""Which models a container serves: those in its image, those that the platform placed, or those to be fetched.

`docs/runtime-contract.md` has the order and the variables. Nothing here touches the network.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, MlimgError, ModelError, SpecError, printable
from mlimg.runtime.hosts import serves_metadata
from mlimg.runtime.manifest import MANIFEST_NAME, SEVERAL
from mlimg.runtime.reference import OBJECT_SCHEMES, ModelUri
from mlimg.runtime.verify import read_manifest

DEFAULT_MODEL_DIR: Final = "/models"
_PLACES: Final = (Path("/mnt/models"), Path("/opt/ml/model"))
_URI_VARIABLES: Final = ("MLIMG_MODEL", "AIP_STORAGE_URI", "STORAGE_URI")
_MOUNTINFO: Final = Path("/proc/self/mountinfo")
# Paths may hold commas and blanks: they part two URIs only where the next one begins.
_BETWEEN_URIS: Final = re.compile(r"[,\s]+(?=[a-z][a-z0-9+.-]*://)")


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model is: a folder to be used in place, or what to fetch.

    `name` tells it from the others until its manifest is read.
    """

    kind: Literal["image", "folder", "remote"]
    folder: Path | None = None
    uri: ModelUri | None = None
    name: str = ""

    @property
    def source(self) -> str:
        """The place as people read it."""
        return str(self.uri or self.folder)


def locate(environ: Mapping[str, str], *, mountinfo: Path = _MOUNTINFO, places: tuple[Path, ...] = _PLACES) -> Located:
    """Decide which model to serve, where that can be one only. Raises SpecError for several, else as `locate_all`."""
    found = locate_all(environ, mountinfo=mountinfo, places=places)
    if len(found) > 1:
        raise SpecError(
            f"there are {len(found)} models, and this takes one: {_listed(found)}",
            hint="name one in MLIMG_MODEL; `serve` takes several",
        )
    return found[0]


def locate_all(
    environ: Mapping[str, str], *, mountinfo: Path = _MOUNTINFO, places: tuple[Path, ...] = _PLACES
) -> tuple[Located, ...]:
    """Decide which models to serve: one or more, no two of one name.

    Raises SpecError for a URI that this server does not fetch and for two of one name, ConflictError when MLIMG_MODEL
    names another model than those that are here, ModelError when there is none.
    """
    model_dir = Path(environ.get("MLIMG_MODEL_DIR") or DEFAULT_MODEL_DIR)
    wanted = _parse_uris(environ.get("MLIMG_MODEL", ""), "MLIMG_MODEL")
    looked = [model_dir, *places]
    if placed := environ.get("AZUREML_MODEL_DIR"):
        looked.append(Path(placed))
    for folder in looked:
        if not holds_model(folder):
            continue
        if any(uri.scheme == "file" and _is_below(Path(uri.path()), folder) for uri in wanted):
            break  # names one of the models in there
        models = {
            name: Located(
                "image" if folder == model_dir and is_in_image(model, mountinfo) else "folder", model, name=name
            )
            for name, model in _models_in(folder).items()
        }
        return _chosen(models, wanted, folder) if wanted else tuple(models.values())
    for variable in _URI_VARIABLES:
        if environ.get(variable):
            uris = wanted if variable == "MLIMG_MODEL" else (parse_uri(environ[variable], variable),)
            return _named(uris, variable, environ, model_dir)
    raise ModelError(
        "there is no model to serve: looked in "
        + ", ".join(str(folder) for folder in looked)
        + f", and {', '.join(_URI_VARIABLES)} are not set",
        hint="set MLIMG_MODEL=oci://registry/repository/name:version, or mount a model at /mnt/models",
    )


def _named(uris: Sequence[ModelUri], variable: str, environ: Mapping[str, str], model_dir: Path) -> tuple[Located, ...]:
    """The models that a variable names."""
    roots = [Path("/mnt"), model_dir, *(Path(text) for text in (environ.get("MLIMG_STORE_DIR"),) if text)]
    found: list[Located] = []
    for uri in uris:
        folder = _folder_of(uri, variable, roots) if uri.scheme == "file" else None
        name = _name_of(uri, roots) if len(uris) > 1 else ""
        if any(other.name == name for other in found):
            raise SpecError(f"{variable} names two models `{printable(name)}`: requests could not tell them apart")
        found.append(Located("folder" if folder else "remote", folder, uri, name))
    return tuple(found)


def _name_of(uri: ModelUri, roots: Collection[Path]) -> str:
    """A model's name: its manifest's where that is here, else its place's: ``…/name:version``, ``…/name/version``."""
    if uri.scheme == "oci":
        return uri.image().repository.rpartition("/")[2]
    if uri.scheme != "file":
        place = uri.place()
        return place.prefix.parent.name or place.prefix.name or place.bucket
    folder = Path(uri.path())
    with suppress(MlimgError):  # what is damaged has no name of its own, and is told when it is verified
        if found := read_manifest(folder):
            return found[0].name
    return folder.name if folder.parent in roots else folder.parent.name


def _listed(models: Sequence[Located]) -> str:
    return ", ".join(printable(model.name) for model in models)


def holds_model(folder: Path) -> bool:
    """Whether a folder has anything that is not hidden; a fresh volume's ``lost+found`` does not count."""
    try:
        return any(not entry.name.startswith(".") and entry.name != "lost+found" for entry in folder.iterdir())
    except OSError:
        return False


def _models_in(folder: Path) -> dict[str, Path]:
    """The models in a folder: itself, or each of its folders with a manifest, by that folder's name.

    Where a whole model image is mounted, as volumes without `subPath` are, a model lies in `models` below.
    """
    if (itself := _with_manifest(folder)) is not None:
        if not _is_several(itself):
            return {"": itself}
        folder = itself
    found = {entry.name: _with_manifest(entry) for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")}
    return {name: model for name, model in found.items() if model is not None} or {"": folder}


def _is_several(folder: Path) -> bool:
    """Whether the manifest is one of several models together, as in an image that was built with all of them."""
    with suppress(MlimgError):  # what is damaged is told when it is verified
        found = read_manifest(folder)
        return found is not None and found[0].format == SEVERAL
    return False


def _with_manifest(folder: Path) -> Path | None:
    places = (folder, folder / "models")
    # Unlike Path.is_file, this says no where it may not look.
    return next((place for place in places if os.path.isfile(place / MANIFEST_NAME)), None)  # noqa: PTH113


def is_in_image(folder: Path, mountinfo: Path = _MOUNTINFO) -> bool:
    """Whether a folder is in the container's own layers: the mount that holds it is ``/``.

    https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html. Where that cannot be told, it is not.
    """
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        real = folder.resolve()
    except OSError:
        return False
    mounts = {_unescape(line.split(" ")[4]) for line in lines if line.count(" ") >= 5}
    holding = next((str(path) for path in (real, *real.parents) if str(path) in mounts), "")
    return holding == "/"


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _parse_uris(text: str, variable: str) -> list[ModelUri]:
    """The URIs that a variable holds, parted by commas or blanks. Raises SpecError."""
    return [parse_uri(part, variable) for part in _BETWEEN_URIS.split(text.strip())] if text else []


def parse_uri(text: str, variable: str = "") -> ModelUri:
    """The URI that a variable, or an argument, holds. Raises SpecError for what nothing is fetched from."""
    shown = (f"{variable}=" if variable else "") + printable(text)[:300]
    try:
        uri = ModelUri.parse(text)
    except ValueError as error:
        raise SpecError(f"{shown}: {printable(str(error))[:300]}") from error
    if uri.scheme not in {"oci", "file", *OBJECT_SCHEMES}:
        raise SpecError(
            f"{shown}: this server does not fetch from {uri.scheme}://",
            hint="publish the model with mlimg and name it as oci://registry/repository/name:version",
        )
    if uri.scheme == "oci" and serves_metadata(uri.image().registry):
        raise SpecError(f"{shown}: that host is the machine's metadata service, not a registry")
    return uri


def _folder_of(uri: ModelUri, variable: str, allowed: Collection[Path]) -> Path:
    """The folder of a ``file`` URI, links followed, if it lies where models are mounted."""
    folder = Path(uri.path())
    if not any(_is_below(folder, root) for root in allowed):
        raise SpecError(
            f"{variable}={uri}: models are used in place only beneath {', '.join(map(str, allowed))}",
            hint="mount the model there, or name its place in MLIMG_STORE_DIR",
        )
    return folder


def _is_below(folder: Path, root: Path) -> bool:
    return folder.is_relative_to(root) and folder.resolve().is_relative_to(root.resolve())


def _chosen(models: Mapping[str, Located], wanted: Sequence[ModelUri], folder: Path) -> tuple[Located, ...]:
    """Those of the models in `folder` that MLIMG_MODEL names. Raises ConflictError when it names another."""
    chosen: dict[str, Located] = {}
    for uri in wanted:
        name = next((name for name, model in models.items() if _is_same(uri, model)), None)
        if name is None:
            where = "this image" if any(model.kind == "image" for model in models.values()) else str(folder)
            inside = ", ".join(_described(model) for model in models.values())
            raise ConflictError(
                f"MLIMG_MODEL names {uri}, but the model in {where} is {inside}"
                if len(models) == 1
                else f"MLIMG_MODEL names {uri}, but the models in {where} are {inside}",
                hint="unset MLIMG_MODEL to serve what is there, or run an image without a model of its own",
            )
        chosen[name] = models[name]
    return tuple(chosen.values())


def _is_same(wanted: ModelUri, model: Located) -> bool:
    """Whether a model that is here is the one that a URI names."""
    assert model.folder is not None  # noqa: S101 (it is here)
    found = read_manifest(model.folder)
    return found is not None and _names(wanted, model.folder, found[0].name, found[0].version, Digest.of(found[1]))


def _described(model: Located) -> str:
    assert model.folder is not None  # noqa: S101 (it is here)
    found = read_manifest(model.folder)
    return f"{found[0].name} {found[0].version}" if found else "a model without a manifest"


def _names(wanted: ModelUri, folder: Path, name: str, version: str, digest: Digest) -> bool:
    if wanted.scheme == "file":
        same_place = Path(wanted.path()).parts[-2:] == (name, version) or Path(wanted.path()) == folder
        return wanted.digest == digest if wanted.digest else same_place
    if wanted.scheme in OBJECT_SCHEMES:
        return wanted.digest == digest if wanted.digest else wanted.place().prefix.parts[-2:] == (name, version)
    image = wanted.image()
    return image.repository.rpartition("/")[2] == name and image.tag in {None, version}
