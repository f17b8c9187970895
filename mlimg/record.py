"""The release record, `.mlimg/release.json`: what was built, so that `run`, `predict` and `inspect` act on that."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from mlimg.runtime.errors import LocalIOError, UsageError
from mlimg.runtime.variables import DEFAULT_PORT, READY_PATH

if TYPE_CHECKING:
    from mlimg.plan import Plan

RECORD_NAME: Final = "release.json"


@dataclass(frozen=True, slots=True)
class Part:
    """The server, the model or the image of a release.

    `reference` is what to run or fetch: an image reference, or a model URI. `digest` is its identity: the
    digest of the canonical config for images, of the model's files for models. `pinned` names exact bytes
    where such a name exists (a registry's manifest digest, a model URI with digest), else the engine's
    image ID.
    """

    reference: str
    digest: str
    pinned: str
    size_bytes: int
    published: bool
    how: str  # built, reused, published, appended, packed, pushed, tagged, unchanged
    moved_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Release:
    """One release: a server and a model, in one pattern.

    Of several models `models` has the pinned reference of each by its name (in an image, name and version), and
    `model` is all together: what the image holds, or, in its `pinned`, what `MLIMG_MODEL` is set to.
    """

    pattern: str
    name: str
    server: Part
    model: Part
    model_version: str
    server_version: str
    server_inputs: str
    server_key: str
    image: Part | None = None  # in-image only
    tags: tuple[str, ...] = ()  # every tag that was set, in the engine or in a registry
    insecure_registries: tuple[str, ...] = ()  # what a container that fetches the model needs to know, too
    unpublished: tuple[str, ...] = ()  # what of the release has not left the machine
    models: Mapping[str, str] = field(default_factory=dict)
    layout: str | None = None  # the folder of the OCI layout that holds it, where it went nowhere else
    port: int = DEFAULT_PORT  # where the server listens
    grpc_port: int | None = None  # and where it speaks gRPC, if it does
    ready: str = READY_PATH  # the path that says that it is ready
    fetches: bool = True  # whether the server can be told a model, and fetches it
    seconds: float = 0.0

    @property
    def runnable(self) -> Part:
        """The image to start: server and model together, or the server alone."""
        return self.image or self.server

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {"schemaVersion": 1, **asdict(self)}

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a record. Raises ValueError when it is not one."""
        if not isinstance(value, dict) or value.get("schemaVersion") != 1:
            raise ValueError("not a release record of schemaVersion 1")
        known = {key: value[key] for key in (known.name for known in fields(cls)) if key in value}
        try:
            release = cls(**known)
            return replace(
                release,
                server=Part(**known["server"]),
                model=Part(**known["model"]),
                image=Part(**known["image"]) if known.get("image") else None,
                tags=tuple(release.tags),
                unpublished=tuple(release.unpublished),
                insecure_registries=tuple(release.insecure_registries),
            )
        except (TypeError, KeyError) as error:
            raise ValueError("the release record is malformed") from error


def release_of(
    plan: "Plan",
    server_key: str,
    server: Part,
    model: Part,
    *,
    image: Part | None = None,
    tags: Iterable[str],
    unpublished: Iterable[str],
) -> Release:
    """The release that a plan came to."""
    return Release(
        pattern=plan.pattern.value,
        name=plan.model.name,
        server=server,
        model=model,
        image=image,
        model_version=plan.model.version,
        server_version=plan.server.version,
        server_inputs=plan.server.inputs.text,
        server_key=server_key,
        tags=tuple(tags),
        insecure_registries=plan.insecure_registries,
        unpublished=tuple(unpublished),
        port=plan.server.template.health.port,
        grpc_port=plan.server.template.grpc_port(plan.server.options),
        ready=plan.server.template.health.ready,
        fetches=plan.server.template.fetches,
    )


def record_folder(spec_folder: Path) -> Path:
    """Where everything local of a spec lies: the record, the default store, scratch."""
    return spec_folder / ".mlimg"


def local_store(spec_folder: Path) -> Path:
    """The default store, of what never leaves the machine."""
    return record_folder(spec_folder) / "store"


def write_record(spec_folder: Path, release: Release) -> Path:
    """Write the record in one step: it is the old one or the new one. Raises LocalIOError."""
    folder = record_folder(spec_folder)
    path = folder / RECORD_NAME
    scratch = folder / f".{RECORD_NAME}.{os.getpid()}"
    try:
        make_folder(folder)
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(release.to_json(), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):  # the first failure is the one to tell
            scratch.unlink(missing_ok=True)
        raise LocalIOError(f"{path}: {error.strerror}") from error
    return path


def read_record(spec_folder: Path) -> Release:
    """Read what the last build left. Raises UsageError when there was none, LocalIOError when it is unreadable."""
    path = record_folder(spec_folder) / RECORD_NAME
    try:
        return Release.parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(f"{path}: nothing has been built yet", hint="run `mlimg build` first") from None
    except OSError as error:
        raise LocalIOError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise LocalIOError(f"{path}: {error}", hint="run `mlimg build` again") from error


def make_folder(folder: Path) -> None:
    """Make `.mlimg`, hidden from git and from other users. Raises OSError."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
