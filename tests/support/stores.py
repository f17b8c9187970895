"""Every kind of store behind one face, for the tests that hold for all: where to publish, and what an outsider sees."""

import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mlimg.runtime.oci import Access
from mlimg.runtime.stores import Store, open_store
from tests.support.azurite import Azurite
from tests.support.engines import CACHE
from tests.support.faults import FaultServer, forward_to
from tests.support.servers import free_port
from tests.support.swift import Swift


class Kept(Protocol):
    """What an outsider can do to what a store keeps."""

    def damage(self, content: bytes) -> int:
        """Flip a bit wherever these bytes lie; how often they did."""


@dataclass
class Place:
    """A store to publish to. All requests of a remote one pass `proxy`, which logs them and can fail them."""

    kind: str
    text: str  # as `model.store` has it
    kept: Kept
    environ: Mapping[str, str] = field(default_factory=dict)
    proxy: FaultServer | None = None

    @property
    def access(self) -> Access:
        """Impatient, so that tests of what does not pass are short."""
        return Access(environ=self.environ, attempts=3, backoff_seconds=0.05, stall_seconds=5)

    def open(self) -> Store:
        """The store."""
        return open_store(self.text, self.access)

    def sent_bytes(self) -> int:
        """What the bodies of all requests had together, as the proxy saw them."""
        assert self.proxy is not None
        return sum(len(request.body) for request in list(self.proxy.requests))


@dataclass(frozen=True)
class Files:
    """Plain files, in which content lies as it is: a folder store, or the blobs of docker-registry."""

    folder: Path

    def damage(self, content: bytes) -> int:
        """Flip a bit wherever these bytes lie; how often they did."""
        found = 0
        for path in self.folder.rglob("*"):
            if path.is_file() and (at := path.read_bytes().find(content)) >= 0:
                with path.open("r+b") as file:
                    file.seek(at)
                    file.write(bytes([content[0] ^ 1]))
                found += 1
        return found


def folder_place(folder: Path) -> Place:
    """A folder."""
    return Place("folder", str(folder), Files(folder))


@contextmanager
def registry_place(host: str, data: Path, prefix: str) -> Iterator[Place]:
    """A prefix of a docker-registry that keeps its blobs below `data`."""
    with FaultServer(forward_to(host)) as proxy:
        yield Place("registry", f"oci://{proxy.host}/{prefix}", Files(data), proxy=proxy)


@contextmanager
def swift_place(store: Swift, prefix: str) -> Iterator[Place]:
    """A prefix of Swift's bucket."""
    with FaultServer(forward_to(store.host)) as proxy:
        environ = {**store.environ, "AWS_ENDPOINT_URL": f"http://{proxy.host}"}
        yield Place("s3", f"s3://models/{prefix}", store, environ, proxy)


@contextmanager
def azurite_place(store: Azurite, prefix: str) -> Iterator[Place]:
    """A prefix of Azurite's container."""
    with FaultServer(forward_to(store.host)) as proxy:
        environ = dict(store.environ)
        environ["AZURE_STORAGE_ENDPOINT"] = environ["AZURE_STORAGE_ENDPOINT"].replace(store.host, proxy.host)
        yield Place("azure", f"az://models/{prefix}", store, environ, proxy)


@contextmanager
def docker_registry(folder: Path, *, port: int | None = None) -> Iterator[str]:
    """Run Debian's docker-registry with its data below `folder`; its ``host:port``."""
    port = port or free_port()
    settings = folder / "registry.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\n"
    )
    program = shutil.which("docker-registry") or str(CACHE / "bin" / "docker-registry")
    server = subprocess.Popen(
        [program, "serve", settings], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            assert server.poll() is None, "docker-registry ended"
            assert time.monotonic() < deadline, "docker-registry does not answer"
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
