"""PyTorch without CUDA: from its own index where that can be reached, else from a wheel that pip has at hand."""

import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.engines import CACHE, Engine

PUBLIC = "https://download.pytorch.org/whl/cpu"
VERSION = "2.13.0"  # what the examples pin
# Always the same where it is free: a builder knows an installation again by the index's address.
_PORT = 47_311


@dataclass(frozen=True)
class TorchBuilds:
    """Where CPU builds come from, and what builds and trainings that want them have to say."""

    find_links: str
    python: str = ""  # the one version that the builds are for; empty: any
    settings: tuple[str, ...] = ()  # of the spec
    environ: dict[str, str] = field(default_factory=dict)


def public_builds() -> TorchBuilds | None:
    """PyTorch's own index, which the templates name; None where it cannot be reached."""
    page = f"{PUBLIC}/torch/"
    try:
        with urllib.request.urlopen(page, timeout=20):
            return TorchBuilds(page)
    except OSError:
        return None


def wheel_at_hand() -> Path | None:
    """The CPU build for this Python from where pip looks beside indexes; None where that has none."""
    folder = CACHE / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    words = ["download", "--quiet", "--no-index", "--no-deps", "--dest", str(folder), f"torch=={VERSION}+cpu"]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, check=False)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return next(folder.glob(f"torch-{VERSION}+cpu-{tag}-*.whl"), None) if done.returncode == 0 else None


@contextmanager
def served_wheel(wheel: Path, engine: Engine, folder: Path) -> Iterator[TorchBuilds]:
    """The wheel in an index of its own, which the builds of this machine's engine reach."""
    authority = Authority.make(folder)
    with package_index(wheel.parent, authority, engine, port=_PORT) as url:
        yield TorchBuilds(
            str(wheel.parent),
            f"{sys.version_info.major}.{sys.version_info.minor}",
            ("--set", f"build.indexes.torch={url}"),
            {"MLIMG_CA_BUNDLE": str(authority.bundle)},
        )


@contextmanager
def package_index(wheels: Path, authority: Authority, engine: Engine, *, port: int = 0) -> Iterator[str]:
    """A package index (PEP 503) of a folder's wheels, at an address that containers of the engine reach."""
    address = engine.docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    handler = partial(_Index, wheels)
    try:
        server = ThreadingHTTPServer((address, port), handler)
    except OSError:
        if not port:
            raise
        server = ThreadingHTTPServer((address, 0), handler)
    server.socket = authority.context("sound", address).wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"https://{address}:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Index(SimpleHTTPRequestHandler):
    """`/simple/NAME/` lists the wheels of a package, `/NAME.whl` is one."""

    def __init__(self, wheels: Path, *arguments: object) -> None:
        self.wheels = wheels
        super().__init__(*arguments, directory=str(wheels))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        page = re.fullmatch(r"/simple/([a-z0-9-]+)/", self.path)
        if not page:
            super().do_GET()
            return
        names = sorted(path.name for path in self.wheels.glob(f"{page[1].replace('-', '_')}-*.whl"))
        links = "".join(f'<a href="/{name.replace("+", "%2B")}">{name}</a>\n' for name in names)
        body = f"<!DOCTYPE html><html><body>\n{links}</body></html>\n".encode()
        self.send_response(200 if names else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Silent."""
