"""The model manifest: what `mlimg.manifest` says of a model's files. `docs/model-artifact.md` is its specification."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Self

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import printable

MANIFEST_NAME: Final = "mlimg.manifest"
SEVERAL: Final = "models"  # the format of several models together: a folder each, with a manifest of its own
MAX_MANIFEST_BYTES: Final = 64 * 1024 * 1024
# What mlimg itself writes beside a model's files, here and in stores.
RESERVED_NAMES: Final = frozenset({MANIFEST_NAME, ".claim"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}
)


def model_path(text: str) -> PurePosixPath:
    """Parse the path of a model's file: relative, the same on every file system and in every archive.

    Raises ValueError with the rule that is broken.
    """
    shown = printable(text)
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"`{shown}` is not UTF-8") from None
    if not text or text.startswith("/") or len(encoded) > 4096:
        raise ValueError(f"`{shown}` is not a relative path of at most 4096 bytes")
    if not text.isprintable() or "\\" in text:
        raise ValueError(f"`{shown}` has a control character or a backslash")
    if unicodedata.normalize("NFC", text) != text:
        raise ValueError(f"`{shown}` is not in Unicode form NFC: other systems would rename it")
    for part in text.split("/"):
        if part in {"", ".", ".."}:
            raise ValueError(f"`{shown}` has an empty, `.` or `..` part")
        if len(part.encode()) > 254:
            raise ValueError(f"`{shown}` has a name longer than 254 bytes")
        if part.startswith("-"):
            raise ValueError(f"`{shown}` has a name that starts with `-`: commands would read it as an option")
        if part.endswith((".", " ")) or part.split(".")[0].rstrip().lower() in _WINDOWS_DEVICES:
            raise ValueError(f"`{shown}` cannot be a file on every system")
        if part.startswith(".wh."):
            raise ValueError(f"`{shown}` would delete a file: image layers give `.wh.` that meaning")
    return PurePosixPath(text)


def check_collisions(paths: Iterable[PurePosixPath]) -> None:
    """Refuse files that cannot all lie in one folder, on some file system or beside mlimg's own. Raises ValueError."""
    files: dict[str, PurePosixPath] = {}
    folders: dict[str, PurePosixPath] = {}
    for path in sorted(paths, key=str):
        folded = _folded(path)
        if folded in RESERVED_NAMES:
            raise ValueError(f"`{path}` is the name of a file that mlimg writes")
        if folded in files:
            raise ValueError(f"`{files[folded]}` and `{path}` are one file where case does not count")
        files[folded] = path
        for parent in path.parents:
            known = folders.setdefault(_folded(parent), parent)
            if known != parent:
                raise ValueError(f"`{known}` and `{parent}` are one folder where case does not count")
    for folded, path in files.items():
        if folded in folders:
            raise ValueError(f"`{path}` is a file and a folder")


def _folded(path: PurePosixPath) -> str:
    """What file systems that do not tell case compare; Unicode 3.13, definition D145."""
    return unicodedata.normalize("NFD", str(path).casefold())


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: where it lies below the model's folder, and its content."""

    path: PurePosixPath
    size_bytes: int
    sha256: Digest


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """A model's identity and files; equal models give equal bytes. Files are sorted by path."""

    name: str
    version: str
    framework: str
    format: str
    files: tuple[ModelFile, ...]
    requires: tuple[str, ...] = ()
    inputs: tuple[Mapping[str, Any], ...] = ()
    outputs: tuple[Mapping[str, Any], ...] = ()
    source: Mapping[str, str] | None = None

    @property
    def digest(self) -> Digest:
        """The set digest: sha256 over the lines ``<hex>  <path>`` sorted by path, as `sha256sum` prints them."""
        lines = "".join(f"{file.sha256.hex}  {file.path}\n" for file in self.files)
        return Digest("sha256:" + hashlib.sha256(lines.encode()).hexdigest())

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)

    def to_bytes(self) -> bytes:
        """The content of `mlimg.manifest`: stable key order, no times."""
        value: dict[str, Any] = {
            "schemaVersion": 1,
            "name": self.name,
            "version": self.version,
            "framework": self.framework,
            "format": self.format,
            "digest": self.digest.text,
            "files": [
                {"path": str(file.path), "size": file.size_bytes, "sha256": file.sha256.hex} for file in self.files
            ],
        }
        for key, optional in (("requires", self.requires), ("inputs", self.inputs), ("outputs", self.outputs)):
            if optional:
                value[key] = list(optional)
        if self.source:
            value["source"] = dict(sorted(self.source.items()))
        return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a manifest somebody sent. Unknown keys are ignored. Raises ValueError for what breaks a rule."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError("the model manifest is over 64 MiB")
        try:
            value = json.loads(data.decode(), object_pairs_hook=_parse_object, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError("the model manifest is not JSON in UTF-8, or repeats a key") from error
        version = value.get("schemaVersion") if isinstance(value, dict) else None
        if version != 1 or isinstance(version, bool | float):
            raise ValueError("the model manifest is not of schemaVersion 1")
        texts = {key: value.get(key) for key in ("name", "version", "framework", "format")}
        for key, text in texts.items():
            if not isinstance(text, str) or not _NAME.fullmatch(text):
                raise ValueError(f"`{key}` of the model manifest is missing, or not letters, digits, `.`, `_` and `-`")
        listed = value.get("files")
        if not isinstance(listed, list) or not listed:
            raise ValueError("the model manifest names no files")
        files = tuple(sorted((_parse_file(item) for item in listed), key=lambda file: str(file.path)))
        check_collisions(file.path for file in files)
        manifest = cls(
            name=str(texts["name"]),
            version=str(texts["version"]),
            framework=str(texts["framework"]),
            format=str(texts["format"]),
            files=files,
            requires=tuple(_parse_list(value, "requires", str)),
            inputs=tuple(_parse_list(value, "inputs", dict)),
            outputs=tuple(_parse_list(value, "outputs", dict)),
            source=_parse_source(value.get("source")),
        )
        if manifest.digest.text != value.get("digest"):
            raise ValueError("the model manifest's digest does not match its files")
        return manifest


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _parse_source(value: object) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("`source` of the model manifest is malformed")
    return value


def _parse_file(item: object) -> ModelFile:
    if not isinstance(item, dict):
        raise ValueError("a file of the model manifest is not an object")
    path, size, sha256 = item.get("path"), item.get("size"), item.get("sha256")
    if not isinstance(path, str) or not isinstance(sha256, str):
        raise ValueError("a file of the model manifest lacks path or sha256")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**53:
        raise ValueError(f"`{printable(path)}` has the size {size!r}")
    return ModelFile(model_path(path), size, Digest.parse(f"sha256:{sha256}"))


def _parse_list(value: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    items = value.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise ValueError(f"`{key}` of the model manifest is malformed")
    return items
