"""What the environment sets of a server, parsed once. `docs/runtime-contract.md` lists the variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from mlimg.runtime.variables import DEFAULT_HOST, DEFAULT_PORT, switch, whole_number

SERVER_DIR: Final = "/opt/mlimg"
_CGROUP_CPU: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Batching:
    """How many requests are predicted as one at most, and how long the first may wait for others.

    Without delay a batch is what came while all workers were busy.
    """

    max_size: int = 1
    max_delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to listen, how much to take on at once, and how long to wait."""

    host: str
    port: int
    server_dir: Path
    workers: int
    queue: int
    batching: Batching
    request_timeout_seconds: float
    grace_seconds: float
    body_limit_bytes: int
    warm_up: bool

    @classmethod
    def parse(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings. Raises SpecError naming the variable that is wrong."""
        workers = whole_number(environ, "MLIMG_WORKERS", usable_cpus(), 1, 1024)
        return cls(
            host=environ.get("HOST") or DEFAULT_HOST,
            port=whole_number(environ, "PORT", DEFAULT_PORT, 0, 65535),
            server_dir=Path(environ.get("MLIMG_SERVER_DIR") or SERVER_DIR),
            workers=workers,
            queue=whole_number(environ, "MLIMG_QUEUE", 16 * workers, 0, 1_000_000),
            batching=Batching(
                whole_number(environ, "MLIMG_MAX_BATCH_SIZE", 1, 1, 1024),
                whole_number(environ, "MLIMG_MAX_BATCH_DELAY_MS", 0, 0, 60_000) / 1000,
            ),
            request_timeout_seconds=whole_number(environ, "MLIMG_REQUEST_TIMEOUT_SECONDS", 30, 1, 86_400),
            grace_seconds=whole_number(environ, "MLIMG_GRACE_SECONDS", 30, 0, 86_400),
            body_limit_bytes=whole_number(environ, "MLIMG_BODY_LIMIT_MIB", 64, 1, 65_536) * 1024 * 1024,
            warm_up=switch(environ, "MLIMG_WARM_UP", default=True),
        )


def usable_cpus() -> int:
    """The processors this process may use: its affinity, cut to the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, _, period = _CGROUP_CPU.read_text(encoding="ascii").partition(" ")
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or the quota is `max`
        return count
