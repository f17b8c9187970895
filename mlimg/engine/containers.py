"""A container: started from options, followed, stopped, removed."""

import shlex
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import docker
from docker.errors import NotFound
from docker.types import DeviceRequest, Mount

from mlimg.engine.border import engine_errors
from mlimg.engine.lines import Lines

TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a container is started with; the same as a `docker run`, which `command_line` gives."""

    image: str
    command: Sequence[str] = ()
    ports: Mapping[int, int] = field(default_factory=dict)  # container's port -> this machine's, 0 for any free one
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    mounts: Mapping[PurePosixPath, Path] = field(default_factory=dict)  # read-only, always
    tmpfs: Sequence[PurePosixPath] = ()
    gpus: str = ""  # as `docker run --gpus` takes it: "all" or a count
    user: str = ""
    read_only: bool = False
    network: str = ""
    extra_hosts: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    remove: bool = False  # by the engine, as soon as it ends

    def command_line(self, *, detach: bool = False) -> str:
        """The equal `docker run`, fit to be pasted into a shell."""
        words = ["docker", "run"]
        words += ["--detach"] if detach else []
        words += ["--rm"] if self.remove else []
        words += ["--name", self.name] if self.name else []
        words += ["--user", self.user] if self.user else []
        words += ["--read-only"] if self.read_only else []
        words += ["--gpus", self.gpus] if self.gpus else []
        words += ["--network", self.network] if self.network else []
        for name, address in self.extra_hosts.items():
            words += ["--add-host", f"{name}:{address}"]
        for inside, outside in self.ports.items():
            words += ["--publish", f"127.0.0.1:{outside or ''}:{inside}"]
        for key, value in self.env.items():
            words += ["--env", f"{key}={value}"]
        for target, source in self.mounts.items():
            words += ["--mount", f"type=bind,{_csv(f'source={source}')},{_csv(f'target={target}')},readonly"]
        for folder in self.tmpfs:
            words += ["--tmpfs", str(folder)]
        for key, value in self.labels.items():
            words += ["--label", f"{key}={value}"]
        return shlex.join([*words, self.image, *self.command])


@dataclass(frozen=True, slots=True)
class ContainerState:
    """How a container is now."""

    running: bool
    status: int | None  # its exit status, once it has ended
    error: str
    out_of_memory: bool


class Container:
    """A container that was started. Every call raises EngineError when it fails."""

    def __init__(self, client: docker.APIClient, container_id: str, name: str) -> None:
        self._client = client
        self.id = container_id
        self.name = name

    def state(self) -> ContainerState | None:
        """How it is; None when it is gone."""
        with engine_errors(f"look at container {self.name}"):
            try:
                state = self._client.inspect_container(self.id)["State"]
            except NotFound:
                return None
        running = bool(state.get("Running"))
        return ContainerState(
            running, None if running else state.get("ExitCode"), state.get("Error") or "", bool(state.get("OOMKilled"))
        )

    def ports(self) -> dict[int, int]:
        """The container's ports and this machine's."""
        with engine_errors(f"look at container {self.name}"):
            bound = self._client.inspect_container(self.id)["NetworkSettings"]["Ports"] or {}
        return {int(inside.split("/")[0]): int(outside[0]["HostPort"]) for inside, outside in bound.items() if outside}

    def logs(self) -> Iterator[str]:
        """Its log, line by line, until it ends."""
        lines: deque[str] = deque()
        cutter = Lines(lines.append)
        with engine_errors(f"follow the log of {self.name}"):
            for data in self._client.logs(self.id, stdout=True, stderr=True, stream=True, follow=True):
                cutter.feed(data)
                while lines:
                    yield lines.popleft()
        cutter.feed(b"", final=True)
        yield from lines

    def tail(self, count: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines of its log."""
        lines: deque[str] = deque(maxlen=count)
        with engine_errors(f"read the log of {self.name}"):
            Lines(lines.append).feed(self._client.logs(self.id, stdout=True, stderr=True, tail=count), final=True)
        return tuple(lines)

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        with engine_errors(f"wait for container {self.name}"):
            # The SDK's own default would give up after its read time-out; a server runs for days.
            return int(self._client.wait(self.id, timeout=10**9)["StatusCode"])

    def stop(self, grace_seconds: int = 30) -> None:
        """Ask it to end, and end it after the grace. Does nothing when it is gone."""
        with engine_errors(f"stop container {self.name}"):
            try:
                self._client.stop(self.id, timeout=grace_seconds)
            except NotFound:
                return

    def remove(self) -> None:
        """Remove it, running or not. Does nothing when it is gone."""
        with engine_errors(f"remove container {self.name}"):
            try:
                self._client.remove_container(self.id, force=True, v=True)
            except NotFound:
                return


def start(client: docker.APIClient, options: RunOptions) -> Container:
    """Create and start a container. Raises EngineError, leaving none behind."""
    host_config = client.create_host_config(
        port_bindings={inside: ("127.0.0.1", outside or None) for inside, outside in options.ports.items()}
        if options.network != "host"
        else None,
        mounts=[
            Mount(str(target), str(source), type="bind", read_only=True) for target, source in options.mounts.items()
        ],
        tmpfs={str(folder): "" for folder in options.tmpfs},
        device_requests=[_gpus(options.gpus)] if options.gpus else None,
        read_only=options.read_only,
        network_mode=options.network or None,
        extra_hosts=dict(options.extra_hosts),
        auto_remove=options.remove,
        init=False,
    )
    with engine_errors(f"start a container of {options.image}"):
        created = client.create_container(
            options.image,
            list(options.command) or None,
            ports=list(options.ports),
            environment=dict(options.env),
            user=options.user or None,
            labels=dict(options.labels),
            name=options.name or None,
            host_config=host_config,
        )
        container = Container(client, created["Id"], options.name or created["Id"][:12])
        try:
            client.start(container.id)
        except BaseException:
            container.remove()
            raise
    return container


def _csv(field: str) -> str:
    """A field of `--mount`, which is read as a line of CSV."""
    return '"' + field.replace('"', '""') + '"' if set(field) & {",", '"'} else field


def _gpus(wanted: str) -> DeviceRequest:
    if wanted == "all":
        return DeviceRequest(count=-1, capabilities=[["gpu"]])
    if wanted.isdecimal():
        return DeviceRequest(count=int(wanted), capabilities=[["gpu"]])
    return DeviceRequest(device_ids=wanted.removeprefix("device=").split(","), capabilities=[["gpu"]])
