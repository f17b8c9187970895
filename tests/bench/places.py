"""Places to push to, on loopback, with their data in memory: docker-registry, and the sink that only counts."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}, maxthreads: 100}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}", secret: bench}}
"""
SINK = Path(__file__).parents[1] / "support" / "sink.py"


@dataclass
class RealRegistry:
    """A running docker-registry."""

    host: str
    data: Path
    process: "subprocess.Popen[bytes]"

    def read_bytes(self) -> int:
        """All that the process has read so far, from connections and files, as the kernel counted it."""
        facts = Path(f"/proc/{self.process.pid}/io").read_text(encoding="ascii")
        return int(dict(line.split(": ") for line in facts.splitlines())["rchar"])

    def empty(self) -> None:
        """Forget all blobs and tags: memory is needed for the next."""
        shutil.rmtree(self.data / "docker", ignore_errors=True)


@contextmanager
def docker_registry(folder: Path) -> Iterator[RealRegistry]:
    """Debian's docker-registry with its data in `folder`, which is emptied afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    data = folder / f"registry-{port}"
    data.mkdir(parents=True)
    config = folder / f"registry-{port}.yml"
    config.write_text(_CONFIG.format(data=data, port=port), encoding="utf-8")
    with (folder / f"registry-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )
    registry = RealRegistry(f"127.0.0.1:{port}", data, process)
    try:
        _wait_for(registry.host, process)
        yield registry
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(data, ignore_errors=True)


def _wait_for(host: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(200):
        try:
            http.client.HTTPConnection(host, timeout=2).request("GET", "/v2/")
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
        else:
            return
    raise SystemExit("docker-registry does not start")


@dataclass
class CountingSink:
    """A running `tests/support/sink.py`."""

    host: str

    def blob_bytes(self) -> int:
        """How many bytes of blobs have arrived."""
        connection = http.client.HTTPConnection(self.host, timeout=5)
        connection.request("GET", "/counts")
        return int(json.loads(connection.getresponse().read())["blob_bytes"])


@contextmanager
def sink(bytes_per_second: float = 0) -> Iterator[CountingSink]:
    """The sink; with a number, no connection is faster than that."""
    process = subprocess.Popen(
        [sys.executable, str(SINK), str(bytes_per_second)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield CountingSink(f"127.0.0.1:{process.stdout.readline().strip()}")
    finally:
        process.stdin.close()
        process.wait()
