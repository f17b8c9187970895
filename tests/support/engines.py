"""Docker engines for tests: which ones there are, and how to call them."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TOOLS = Path(__file__).resolve().parents[2] / "tools"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlimg-dev"

# The registries' compose projects carry the process id of their test run.
PROJECT_PREFIX = "mlimg-test-"

Store = Literal["graph", "containerd"]


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker engine: where it listens, and which image store it has."""

    host: str
    store: Store

    @classmethod
    def at(cls, host: str) -> "Engine":
        """The engine that listens at ``host``."""
        status = _docker(host, "info", "--format", "{{json .DriverStatus}}")
        return cls(host, "containerd" if "io.containerd.snapshotter" in status else "graph")

    @property
    def env(self) -> dict[str, str]:
        """The environment in which ``docker`` and mlimg talk to this engine."""
        return environment(self.host)

    def docker(self, *arguments: str, stdin: str | None = None) -> str:
        """Run ``docker`` against this engine and return what it printed, stripped."""
        return _docker(self.host, *arguments, stdin=stdin)

    def image_ids(self) -> set[str]:
        """The ID of every image in the engine, untagged ones too."""
        return set(self.docker("image", "ls", "--all", "--quiet", "--no-trunc").split())

    def diff_ids(self, image: str) -> list[str]:
        """The diffIDs of an image's layers, lowest first."""
        layers: list[str] = json.loads(self.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
        return layers


def environment(host: str) -> dict[str, str]:
    """The environment for commands that talk to the engine at ``host``."""
    return {key: value for key, value in os.environ.items() if key != "DOCKER_CONTEXT"} | {"DOCKER_HOST": host}


def default_host() -> str:
    """Where the engine listens that a bare ``docker`` talks to."""
    if host := os.environ.get("DOCKER_HOST"):
        return host
    command = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def tool(name: str, *arguments: str, host: str | None = None) -> str:
    """Run a script of ``tools/`` and return the last line it printed."""
    done = subprocess.run(
        [str(TOOLS / name), *arguments],
        env=environment(host) if host else None,
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"tools/{name} {' '.join(arguments)} failed ({done.returncode}):\n{done.stderr}")
    lines = done.stdout.splitlines()
    return lines[-1] if lines else ""


def remove_projects_of_dead_runs() -> None:
    """Remove the registries that test runs left which were killed."""
    form = '{{.Label "com.docker.compose.project"}}'
    command = ["ps", "--all", "--filter", "label=com.docker.compose.project", "--format", form]
    for project in sorted(set(_docker(None, *command).split())):
        pid = project.removeprefix(PROJECT_PREFIX)
        if pid != project and pid.isdecimal() and not _lives(int(pid)):
            _docker(None, "compose", "--project-name", project, "down", "--volumes")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # What was killed stays as a zombie until its parent collects it; the state stands after the name.
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(") ")[2].startswith(("Z", "X")))


def _docker(host: str | None, *arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        ["docker", *arguments],
        env=environment(host) if host else None,
        input=stdin or "",
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return done.stdout.strip()
