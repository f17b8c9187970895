"""Which model a container serves: the one in its image, one that the platform placed, or one to be fetched.

`docs/runtime-contract.md` has the order and the variables. Nothing here touches the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, ModelError, SpecError, printable
from mlimg.runtime.hosts import serves_metadata
from mlimg.runtime.manifest import MANIFEST_NAME
from mlimg.runtime.reference import OBJECT_SCHEMES, ModelUri
from mlimg.runtime.verify import read_manifest

DEFAULT_MODEL_DIR: Final = "/models"
_PLACES: Final = (Path("/mnt/models"), Path("/opt/ml/model"))
_URI_VARIABLES: Final = ("MLIMG_MODEL", "AIP_STORAGE_URI", "STORAGE_URI")
_MOUNTINFO: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Located:
    """Where the model is: a folder to be used in place, or what to fetch."""

    kind: Literal["image", "folder", "remote"]
    folder: Path | None = None
    uri: ModelUri | None = None

    @property
    def source(self) -> str:
        """The place as people read it."""
        return str(self.uri or self.folder)


def locate(environ: Mapping[str, str], *, mountinfo: Path = _MOUNTINFO, places: tuple[Path, ...] = _PLACES) -> Located:
    """Decide which model to serve.

    Raises SpecError for a URI that this server does not fetch, ConflictError when MLIMG_MODEL names another model than
    the one that is here, ModelError when there is none.
    """
    model_dir = Path(environ.get("MLIMG_MODEL_DIR") or DEFAULT_MODEL_DIR)
    wanted = parse_uri(environ["MLIMG_MODEL"], "MLIMG_MODEL") if environ.get("MLIMG_MODEL") else None
    looked = [model_dir, *places]
    if placed := environ.get("AZUREML_MODEL_DIR"):
        looked.append(Path(placed))
    for folder in looked:
        if not holds_model(folder):
            continue
        if wanted and wanted.scheme == "file" and _is_below(Path(wanted.path()), folder):
            break  # names one of the models in there
        in_image = folder == model_dir and is_in_image(folder, mountinfo)
        model = _model_in(folder)
        if wanted:
            _check_same(wanted, model, "this image" if in_image else str(model))
        return Located("image" if in_image else "folder", model)
    for variable in _URI_VARIABLES:
        if environ.get(variable):
            uri = parse_uri(environ[variable], variable)
            if uri.scheme != "file":
                return Located("remote", uri=uri)
            return Located("folder", _folder_of(uri, variable, environ, model_dir), uri)
    raise ModelError(
        "there is no model to serve: looked in "
        + ", ".join(str(folder) for folder in looked)
        + f", and {', '.join(_URI_VARIABLES)} are not set",
        hint="set MLIMG_MODEL=oci://registry/repository/name:version, or mount a model at /mnt/models",
    )


def holds_model(folder: Path) -> bool:
    """Whether a folder has anything that is not hidden; a fresh volume's ``lost+found`` does not count."""
    try:
        return any(not entry.name.startswith(".") and entry.name != "lost+found" for entry in folder.iterdir())
    except OSError:
        return False


def _model_in(folder: Path) -> Path:
    """The folder itself, or its ``models`` where a whole model image is mounted, as volumes without `subPath` are."""
    if not (folder / MANIFEST_NAME).exists() and (folder / "models" / MANIFEST_NAME).is_file():
        return folder / "models"
    return folder


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


def _folder_of(uri: ModelUri, variable: str, environ: Mapping[str, str], model_dir: Path) -> Path:
    """The folder of a ``file`` URI, links followed, if it lies where models are mounted."""
    allowed = [Path("/mnt"), model_dir, *(Path(text) for text in (environ.get("MLIMG_STORE_DIR"),) if text)]
    folder = Path(uri.path())
    if not any(_is_below(folder, root) for root in allowed):
        raise SpecError(
            f"{variable}={uri}: models are used in place only beneath {', '.join(map(str, allowed))}",
            hint="mount the model there, or name its place in MLIMG_STORE_DIR",
        )
    if not holds_model(folder):
        raise ModelError(f"{variable}={uri}: there is no model in {folder}", hint="is the volume mounted?")
    return folder


def _is_below(folder: Path, root: Path) -> bool:
    return folder.is_relative_to(root) and folder.resolve().is_relative_to(root.resolve())


def _check_same(wanted: ModelUri, folder: Path, where: str) -> None:
    """Raise ConflictError unless the model in `folder` is the one that MLIMG_MODEL names."""
    found = read_manifest(folder)
    if found is not None and _names(wanted, folder, found[0].name, found[0].version, Digest.of(found[1])):
        return
    inside = f"{found[0].name} {found[0].version}" if found else "a model without a manifest"
    raise ConflictError(
        f"MLIMG_MODEL names {wanted}, but the model in {where} is {inside}",
        hint="unset MLIMG_MODEL to serve it, or run an image without a model of its own",
    )


def _names(wanted: ModelUri, folder: Path, name: str, version: str, digest: Digest) -> bool:
    if wanted.scheme == "file":
        same_place = Path(wanted.path()).parts[-2:] == (name, version) or Path(wanted.path()) == folder
        return wanted.digest == digest if wanted.digest else same_place
    if wanted.scheme in OBJECT_SCHEMES:
        return wanted.digest == digest if wanted.digest else wanted.place().prefix.parts[-2:] == (name, version)
    image = wanted.image()
    return image.repository.rpartition("/")[2] == name and image.tag in {None, version}
