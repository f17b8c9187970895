"""OpenStack Swift with its S3 API: a real object store, started on loopback in seconds.

One account, container, object and proxy server each, one device, one replica. A second proxy, which asks for no
credentials and knows no S3, lets tests look behind the first. `tools/test-packages.sh` installs them.
"""

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.support.engines import CACHE
from tests.support.servers import free_port

PROGRAMS: Final = CACHE / "swift" / "bin"
BUCKET: Final = "models"
# What nine calls of swift-ring-builder would do: three rings of one device and one replica each.
_RINGS: Final = """
import sys
from swift.common.ring import RingBuilder
for name, port in (word.split("=") for word in sys.argv[1:]):
    ring = RingBuilder(4, 1, 0)
    ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1})
    ring.rebalance()
    ring.get_ring().save(name + ".ring.gz")
"""
_START_SECONDS: Final = 60
_PIPELINES: Final = {
    "proxy": "catch_errors gatekeeper cache listing_formats bulk s3api tempauth copy slo dlo proxy-server",
    "judge": "catch_errors gatekeeper cache listing_formats copy slo dlo proxy-server",
}


@dataclass(frozen=True)
class Swift:
    """A running store. `devices` is where it keeps its objects' bytes."""

    host: str
    judge: str
    devices: Path

    @property
    def environ(self) -> Mapping[str, str]:
        """What a client of its S3 API is told."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.host}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test:tester",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }

    def keys(self) -> dict[str, int]:
        """Every object of the bucket with its size, by Swift's own interface."""
        status, data = self._ask("GET", f"/{BUCKET}?format=json&limit=9999")
        assert status == 200, data
        return {entry["name"]: entry["bytes"] for entry in json.loads(data)}

    def parts(self) -> set[str]:
        """What uploads in parts have stored, ``key/upload/number``: of those that were not completed, too."""
        status, data = self._ask("GET", f"/{BUCKET}%2Bsegments?format=json&limit=9999")
        assert status in {200, 204, 404}, data
        return {entry["name"] for entry in json.loads(data)} if status == 200 else set()

    def read(self, key: str) -> bytes:
        """An object's bytes, by Swift's own interface."""
        status, data = self._ask("GET", f"/{BUCKET}/{quote(key)}")
        assert status == 200, data
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write an object by Swift's own interface, which takes keys that S3 clients would not send."""
        status, said = self._ask("PUT", f"/{BUCKET}/{quote(key)}", data)
        assert status == 201, said

    def delete(self, key: str) -> None:
        """Remove an object by Swift's own interface."""
        status, said = self._ask("DELETE", f"/{BUCKET}/{quote(key)}")
        assert status == 204, said

    def make_bucket(self, name: str = BUCKET) -> None:
        """Make a bucket. Raises OSError while the servers start."""
        status, said = self._ask("PUT", f"/{name}")
        if status not in {201, 202}:
            raise OSError(f"{status} {said!r}")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.judge, timeout=30)
        try:
            connection.request(method, f"/v1/AUTH_test{path}", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def damage(self, content: bytes) -> int:
        """Flip a bit of every stored object that has this content; how many there were."""
        found = 0
        for path in self.devices.rglob("*.data"):
            if path.stat().st_size == len(content) and path.read_bytes() == content:
                with path.open("r+b") as file:
                    file.write(bytes([content[0] ^ 1]))
                found += 1
        return found


@contextmanager
def swift(folder: Path) -> Iterator[Swift]:
    """Run a store with one bucket. Its data is below `folder`, whose file system must have extended attributes."""
    ports = {name: free_port() for name in ("account", "container", "object", *_PIPELINES)}
    _configure(folder, ports)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for name in ports:
            program = PROGRAMS / f"swift-{'proxy' if name in _PIPELINES else name}-server"
            with (folder / f"{name}.log").open("wb") as log:
                servers.append(
                    subprocess.Popen(
                        [PROGRAMS / "python", program, folder / f"{name}.conf", "--verbose"],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        cwd=folder,
                    )
                )
        store = Swift(f"127.0.0.1:{ports['proxy']}", f"127.0.0.1:{ports['judge']}", folder / "devices")
        _wait_for(store, servers, folder)
        yield store
    finally:
        for server in servers:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # the group of its own session: the server and its workers
            server.wait()


def _configure(folder: Path, ports: Mapping[str, int]) -> None:
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    common = (
        f"bind_ip = 127.0.0.1\nswift_dir = {folder}\ndevices = {folder}/devices\nmount_check = false\nworkers = 0\n"
        f"user = {os.environ.get('USER') or 'root'}\nfallocate_reserve = 0\ndisable_fallocate = true\n"
        "log_level = WARNING\nlog_address = /dev/null\neventlet_debug = false\n"
    )
    for name in ("account", "container", "object"):
        (folder / f"{name}.conf").write_text(
            f"[DEFAULT]\nbind_port = {ports[name]}\n{common}\n"
            f"[pipeline:main]\npipeline = {name}-server\n\n[app:{name}-server]\nuse = egg:swift#{name}\n"
        )
    rings = [f"{name}={ports[name]}" for name in ("account", "container", "object")]
    subprocess.run([PROGRAMS / "python", "-c", _RINGS, *rings], check=True, capture_output=True, cwd=folder)
    settings = {
        # Pages as short as those of no other store: every listing of a few objects has several.
        "s3api": "location = us-east-1\ns3_acl = false\nmax_bucket_listing = 2\n",
        "tempauth": "user_test_tester = testing .admin\n",
    }
    for name, pipeline in _PIPELINES.items():
        filters = "".join(
            f"[filter:{word}]\nuse = egg:swift#{'memcache' if word == 'cache' else word}\n{settings.get(word, '')}\n"
            for word in pipeline.split()[:-1]
        )
        (folder / f"{name}.conf").write_text(
            f"[DEFAULT]\nbind_port = {ports[name]}\n{common}\n[pipeline:main]\npipeline = {pipeline}\n\n"
            f"[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n\n{filters}"
        )


def _wait_for(store: Swift, servers: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while (refusal := _refusal(store)) is not None:
        logs = "".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
        assert all(server.poll() is None for server in servers), logs
        assert time.monotonic() < deadline, f"{refusal}\n{logs}"
        time.sleep(0.1)


def _refusal(store: Swift) -> Exception | None:
    try:
        store.make_bucket()
        connection = http.client.HTTPConnection(store.host, timeout=5)
        connection.request("GET", "/")  # refused, but answered
        connection.getresponse()
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        return error
    return None
