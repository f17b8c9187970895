"""What the environment sets of a server, parsed once. `docs/runtime-contract.md` lists the variables."""

import os
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from mlimg.runtime.errors import SpecError, printable
from mlimg.runtime.variables import DEFAULT_GRPC_PORT, DEFAULT_HOST, listen_port, switch, whole_number, words

SERVER_DIR: Final = "/opt/mlimg"
NO_OPTIONS: Final[Mapping[str, Any]] = {}
_KINDS: Final = ("threads", "processes")
_PATH: Final = re.compile(r"/[^\s{}?#%]{0,999}")
_OTHER_FILES: Final = 64
_CGROUP_CPU: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Batching:
    """How many requests are predicted as one at most, and how long the first may wait for others.

    Without delay a batch is what came while all workers were busy.
    """

    max_size: int = 1
    max_delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PlatformRoutes:
    """The paths that Vertex AI chose for predictions and health; empty elsewhere."""

    predict: str = ""
    health: str = ""

    @classmethod
    def parse(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables. Raises SpecError."""
        return cls(_path(environ, "AIP_PREDICT_ROUTE"), _path(environ, "AIP_HEALTH_ROUTE"))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may ask of the server before a request is there, and how many connections there may be."""

    connections: int = 1_000_000
    header_bytes: int = 64 * 1024
    headers: int = 256
    header_seconds: float = 10.0
    chunks: int = 65_536
    body_seconds: float = 30.0
    body_rate_bytes: int = 1024  # a second
    keep_alive_seconds: int = 75  # longer than the 60 s of common load balancers: they close, not we

    @classmethod
    def parse(cls, environ: Mapping[str, str]) -> Self:
        """Read the limits. Raises SpecError; so does 0."""
        return cls(
            connections=whole_number(environ, "MLIMG_CONNECTION_LIMIT", _most_connections(), 1, 1_000_000),
            header_bytes=whole_number(environ, "MLIMG_HEADER_LIMIT_KIB", 64, 1, 1024) * 1024,
            headers=whole_number(environ, "MLIMG_HEADER_COUNT_LIMIT", 256, 1, 65_536),
            header_seconds=whole_number(environ, "MLIMG_HEADER_TIMEOUT_SECONDS", 10, 1, 86_400),
            chunks=whole_number(environ, "MLIMG_CHUNK_LIMIT", 65_536, 1, 2**31),
            body_seconds=_request_timeout(environ),
            body_rate_bytes=whole_number(environ, "MLIMG_BODY_RATE_BYTES", 1024, 1, 2**31),
            keep_alive_seconds=whole_number(environ, "MLIMG_KEEP_ALIVE_SECONDS", 75, 1, 86_400),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """How to listen, how much to take on at once, and how long to wait."""

    host: str
    port: int
    grpc_port: int | None
    workers: int
    in_processes: bool
    queue: int
    batching: Batching
    request_timeout_seconds: float
    grace_seconds: float
    body_limit_bytes: int
    warm_up: bool
    limits: Limits
    repository_api: bool
    repository_allow: tuple[str, ...]
    routes: PlatformRoutes
    log_requests: bool
    docs: bool

    @classmethod
    def parse(cls, environ: Mapping[str, str], serving: Mapping[str, Any] = NO_OPTIONS) -> Self:
        """Read the settings; what the environment leaves open is as the server was built. Raises SpecError.

        `serving` are the options that `templates/_python/options.yaml` names.
        """
        kind = environ.get("MLIMG_WORKER_KIND") or serving.get("workers", _KINDS[0])
        if kind not in _KINDS:
            raise SpecError(f"MLIMG_WORKER_KIND={printable(kind)[:100]}: expected one of {', '.join(_KINDS)}")
        most = whole_number(environ, "MLIMG_MAX_BATCH_SIZE", serving.get("max_batch_size", 1), 1, 1024)
        delay_ms = whole_number(environ, "MLIMG_MAX_BATCH_DELAY_MS", serving.get("max_batch_delay_ms", 0), 0, 60_000)
        workers = whole_number(environ, "MLIMG_WORKERS", usable_cpus(), 1, 1024)
        return cls(
            host=environ.get("HOST") or DEFAULT_HOST,
            port=listen_port(environ),
            grpc_port=whole_number(environ, "MLIMG_GRPC_PORT", DEFAULT_GRPC_PORT, 0, 65535)
            if serving.get("grpc")
            else None,
            workers=workers,
            in_processes=kind == "processes",
            queue=whole_number(environ, "MLIMG_QUEUE", 16 * workers, 0, 1_000_000),
            batching=Batching(most, delay_ms / 1000),
            request_timeout_seconds=_request_timeout(environ),
            grace_seconds=whole_number(environ, "MLIMG_GRACE_SECONDS", 30, 0, 86_400),
            body_limit_bytes=whole_number(environ, "MLIMG_BODY_LIMIT_MIB", 64, 1, 65_536) * 1024 * 1024,
            warm_up=switch(environ, "MLIMG_WARM_UP", default=True),
            limits=Limits.parse(environ),
            repository_api=switch(environ, "MLIMG_REPOSITORY_API", default=False),
            repository_allow=tuple(words(environ, "MLIMG_REPOSITORY_ALLOW")),
            routes=PlatformRoutes.parse(environ),
            log_requests=switch(environ, "LOG_REQUESTS", default=False),
            docs=switch(environ, "MLIMG_DOCS", default=True),
        )


def server_dir(environ: Mapping[str, str]) -> Path:
    """Where the server's own files are."""
    return Path(environ.get("MLIMG_SERVER_DIR") or SERVER_DIR)


def _request_timeout(environ: Mapping[str, str]) -> int:
    return whole_number(environ, "MLIMG_REQUEST_TIMEOUT_SECONDS", 30, 1, 86_400)


def _path(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "")
    if text and not _PATH.fullmatch(text):
        raise SpecError(f"{name}={printable(text)[:100]}: expected a path such as /predict")
    return text


def usable_cpus() -> int:
    """The processors this process may use: its affinity, cut to the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, _, period = _CGROUP_CPU.read_text(encoding="ascii").partition(" ")
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or the quota is `max`
        return count


def _most_connections() -> int:
    """As many as the process may have open files, less those that models and libraries need."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, min(files, 1_000_000) - _OTHER_FILES) if files != resource.RLIM_INFINITY else 1_000_000
