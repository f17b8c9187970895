"""A release becomes a running container: what it is given, the equal `docker run`, and waiting until it answers.

How a container finds its model is in `docs/runtime-contract.md`.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from mlimg.client import Client
from mlimg.record import Release
from mlimg.runtime.errors import EngineError, MlimgError, UsageError
from mlimg.runtime.hosts import host_of, is_loopback
from mlimg.runtime.reference import OBJECT_SCHEMES, ModelUri
from mlimg.runtime.variables import DEFAULT_GRPC_PORT, DEFAULT_PORT, READY_PATH

if TYPE_CHECKING:
    from mlimg.engine.containers import Container, RunOptions
    from mlimg.engine.docker import Engine

LOOPBACK: Final = "127.0.0.1"
PROJECT_LABEL: Final = "io.mlimg.run.project"
PORT_LABEL: Final = "io.mlimg.run.port"
STORE_MOUNT: Final = PurePosixPath("/mnt/mlimg")
MODEL_FOLDER: Final = PurePosixPath("/models")
HOST_NAME: Final = "host.docker.internal"
NO_ENVIRON: Final[Mapping[str, str]] = {}
_PORT_TAKEN: Final = re.compile(r"port is already allocated|address already in use|ports are not available")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person who runs a release may choose."""

    port: int = DEFAULT_PORT
    grpc_port: int = DEFAULT_GRPC_PORT  # of a server that speaks it
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """How the model reaches the container: nothing for in-image, a mounted store, or a registry to fetch from."""

    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[PurePosixPath, Path] = field(default_factory=dict)
    extra_hosts: Mapping[str, str] = field(default_factory=dict)
    host_network: bool = False
    note: str = ""


def place_model(release: Release, *, linux: bool, environ: Mapping[str, str] = NO_ENVIRON) -> Placement:
    """Decide how a container of this release gets its model, pinned by digest.

    Of `environ` a container that fetches from an object store is told where that is, and never who may read it.
    Raises UsageError when the record names a model that containers cannot reach.
    """
    if release.image is not None:
        return Placement()
    if not release.models:
        return _placed(release, linux=linux, environ=environ)
    # Each as it would be alone: they are in one store.
    placed = [
        _placed(_alone(release, name, pinned), linux=linux, environ=environ) for name, pinned in release.models.items()
    ]
    named = " ".join(placement.env["MLIMG_MODEL"] for placement in placed)
    mounts = {inside: folder for placement in placed for inside, folder in placement.mounts.items()}
    return replace(placed[0], env={**placed[0].env, "MLIMG_MODEL": named}, mounts=mounts)


def _alone(release: Release, name: str, pinned: str) -> Release:
    """The release of one of several models; what a folder store has of it lies in a folder of its version."""
    model = replace(release.model, reference=pinned, pinned=pinned)
    return replace(release, name=name, model=model, model_version=ModelUri.parse(pinned).location.rpartition("/")[2])


def _placed(release: Release, *, linux: bool, environ: Mapping[str, str]) -> Placement:
    """How one model gets to its server."""
    uri = ModelUri.parse(release.model.pinned)
    if uri.scheme == "file":
        return _mounted(release, uri)
    if not release.fetches:
        raise UsageError(
            f"{release.model.reference}: this server cannot fetch its model",
            hint="`mlimg build --no-push` puts it into the local store, from which it is mounted",
        )
    env = {"MLIMG_MODEL": str(uri)}
    if release.insecure_registries:
        env["MLIMG_INSECURE_REGISTRIES"] = ",".join(release.insecure_registries)
    if uri.scheme in OBJECT_SCHEMES:
        return _in_object_store(uri.scheme, env, environ, linux=linux)
    registry = uri.image().registry
    if not uri.image().is_loopback:
        return Placement(env=env)
    if linux:
        # The bridge cannot reach what is bound to the host's 127.0.0.1, nor can the gateway's address.
        return Placement(env=env, host_network=True, note=f"{registry} is on loopback: sharing the host's network")
    port = registry.rpartition(":")[2]
    reached = f"{HOST_NAME}:{port}" if port.isdigit() else HOST_NAME
    return Placement(
        env={"MLIMG_MODEL": str(uri).replace(registry, reached, 1), "MLIMG_INSECURE_REGISTRIES": reached},
        extra_hosts={HOST_NAME: "host-gateway"},
        note=f"{registry} is on loopback: the container reaches it as {reached}",
    )


def _mounted(release: Release, uri: ModelUri) -> Placement:
    """A folder of this machine: where the model belongs, of servers that cannot be told a place."""
    folder = Path(uri.path())
    if not folder.is_dir():
        raise UsageError(f"{folder}: the model is not there any more", hint="run `mlimg build` again")
    if not release.fetches:
        return Placement(mounts={MODEL_FOLDER: folder})
    inside = STORE_MOUNT / release.name / release.model_version
    pinned = ModelUri("file", str(inside), uri.digest)
    return Placement(env={"MLIMG_MODEL": str(pinned)}, mounts={inside: folder})


def _in_object_store(scheme: str, env: Mapping[str, str], environ: Mapping[str, str], *, linux: bool) -> Placement:
    from mlimg.runtime.stores.objects.settings import PLACE_VARIABLES, endpoint_of  # noqa: PLC0415 (brings HTTP along)

    told = {name: environ[name] for name in PLACE_VARIABLES if environ.get(name)}
    netloc = urlsplit(endpoint_of(scheme, environ)).netloc
    if not is_loopback(netloc):
        return Placement(env={**env, **told})
    if linux:
        note = f"{netloc} is on loopback: sharing the host's network"
        return Placement(env={**env, **told}, host_network=True, note=note)
    reached = netloc.replace(host_of(netloc), HOST_NAME, 1)
    told = {name: value.replace(f"//{netloc}", f"//{reached}", 1) for name, value in told.items()}
    return Placement(
        env={**env, **told, "MLIMG_INSECURE_REGISTRIES": reached},
        extra_hosts={HOST_NAME: "host-gateway"},
        note=f"{netloc} is on loopback: the container reaches it as {reached}",
    )


def run_options(release: Release, placement: Placement, wishes: Wishes, folder: Path) -> "RunOptions":
    """All that the container is given. `folder` is the spec's: `mlimg predict` finds the container by it."""
    from mlimg.engine.containers import RunOptions  # noqa: PLC0415 (the engine's SDK is slow to import)

    env = {**placement.env, **wishes.env}
    if placement.host_network:
        # Not published: the server itself listens, and for this machine alone.
        env |= {"HOST": LOOPBACK, "PORT": str(wishes.port)}
        if release.grpc_port is not None:
            env["MLIMG_GRPC_PORT"] = str(wishes.grpc_port)
    told = env if release.fetches else NO_ENVIRON  # only our runtime heeds it
    ports = {_port(told, "PORT", release.port): wishes.port}
    if release.grpc_port is not None:
        ports[_port(told, "MLIMG_GRPC_PORT", release.grpc_port)] = wishes.grpc_port
    return RunOptions(
        image=release.runnable.pinned,
        ports={} if placement.host_network else ports,
        env=env,
        mounts=placement.mounts,
        gpus=wishes.gpus,
        network="host" if placement.host_network else "",
        extra_hosts=placement.extra_hosts,
        labels={PROJECT_LABEL: str(folder), PORT_LABEL: str(wishes.port)},
    )


def _port(told: Mapping[str, str], name: str, default: int) -> int:
    text = told.get(name, "")
    return int(text) if text.isdecimal() else default


@dataclass(frozen=True, slots=True)
class Running:
    """A container that `mlimg run` started, and where it answers."""

    container: "Container"
    url: str
    ready: str = READY_PATH  # the path that says so


def started(engine: "Engine", options: "RunOptions", ready: str) -> Running:
    """Start a container. Raises EngineError."""
    port = options.labels[PORT_LABEL]
    taken = " or ".join(str(outside) for outside in options.ports.values()) or port
    others = "--port and --grpc-port take others" if len(options.ports) > 1 else "--port takes another"
    try:
        container = engine.run_container(options)
    except EngineError as error:
        if _PORT_TAKEN.search(error.message):
            raise EngineError(
                f"port {taken} of this machine is in use",
                hint=f"{others}, 0 a free one; `mlimg run --stop` ends what runs for this spec",
            ) from error
        raise
    return Running(container, f"http://{LOOPBACK}:{port}", ready)


def running(engine: "Engine", folder: Path) -> Running:
    """The newest container of the spec in `folder`. Raises UsageError where none runs."""
    found = containers_of(engine, folder)
    if not found:
        raise UsageError(
            f"{folder}: no container of this spec is running",
            hint="`mlimg run --detach` starts one; --url names another",
        )
    return found[0]


def containers_of(engine: "Engine", folder: Path, *, ended_too: bool = False) -> list[Running]:
    """The containers of the spec in `folder`, the newest first. Raises EngineError."""
    from mlimg.engine.border import engine_errors  # noqa: PLC0415 (the engine's SDK is slow to import)
    from mlimg.engine.containers import Container  # noqa: PLC0415

    with engine_errors("list containers"):
        found = engine.client.containers(all=ended_too, filters={"label": f"{PROJECT_LABEL}={folder}"})
    return [
        Running(
            Container(engine.client, item["Id"], item["Id"][:12]), f"http://{LOOPBACK}:{item['Labels'][PORT_LABEL]}"
        )
        for item in found
    ]


def wait_until_ready(server: Running, timeout_seconds: float) -> float:
    """Wait until the server answers and return the seconds that took.

    Raises the error of the container's own exit status, with its last lines, when it ends before; EngineError when
    it is not ready in time (it still runs then).
    """
    container, client = server.container, Client(server.url, local=True)
    begun = time.monotonic()
    while True:
        reason = client.not_ready(server.ready)
        if not reason:
            return time.monotonic() - begun
        state = container.state()
        if state is None or not state.running:
            raise ended(state.status if state else None, container.tail() if state else ())
        if time.monotonic() - begun > timeout_seconds:
            raise EngineError(
                f"the server is not ready after {timeout_seconds:.0f} s: {reason}",
                hint="--ready-timeout gives it longer",
                log=container.tail(),
            )
        time.sleep(0.1)


def ended(status: int | None, lines: Sequence[str]) -> MlimgError:
    """The error of a container that ended by itself: it uses the same statuses as we do."""
    kind = next((kind for kind in MlimgError.__subclasses__() if kind.status == status), EngineError)
    error = kind(
        f"the container ended with status {status}" if status is not None else "the container was removed",
        hint="137 is SIGKILL: often the memory limit" if status == 137 else "",
        log=lines,
    )
    error.status = status or EngineError.status
    return error
