"""Engines that die or run full: daemons of the tests' own, killed and filled at will."""

import gc
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from mlimg.append import append
from mlimg.engine import buildx
from mlimg.engine.base import resolve_base
from mlimg.engine.docker import Engine
from mlimg.engine.load import load as load_model
from mlimg.runtime.errors import EngineError
from tests.integration.conftest import unavailable
from tests.integration.test_engine_append import layer
from tests.integration.test_engine_build import Steps, context, processes, until_gone
from tests.support.engines import Engine as Host

# The SDK leaves a socket open when nobody listens any more; it is collected before the next test can be blamed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


class Daemon:
    """A dockerd with folders of its own and no network."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root = root
        self.data = data
        self.engine = Host(f"unix://{root}/docker.sock", "graph")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.root / "docker.pid").unlink(missing_ok=True)
        # In a network of its own: a dockerd that starts without a bridge deletes docker0, whoever uses it.
        command = ["unshare", "--net", "dockerd", "--bridge", "none"]
        command += ["--data-root", self.data, "--exec-root", self.root / "exec"]
        command += [
            "--pidfile",
            self.root / "docker.pid",
            "--host",
            self.engine.host,
            "--iptables=false",
            "--ip6tables=false",
        ]
        with (self.root / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.engine.docker("version")
            except RuntimeError:
                if time.monotonic() > deadline:
                    pytest.fail((self.root / "log").read_text()[-3000:])
                time.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        """As the kernel would; its containerd is in its group."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
        for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (point := mount.split()[1]).startswith((f"{self.root}/", f"{self.data}/")):
                subprocess.run(["umount", "-l", point], check=False)


@pytest.fixture
def closer() -> Iterator[ExitStack]:
    """Closes what a test opened."""
    with ExitStack() as stack:
        yield stack
    gc.collect()


@pytest.fixture
def root() -> Iterator[Path]:
    """A short folder: a socket's path has at most 107 bytes."""
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        unavailable("an engine of the test's own needs Linux and root")
    path = Path("/run") / f"mlimg-{uuid.uuid4().hex[:8]}"
    path.mkdir(mode=0o700)
    yield path
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


def load(daemon: Daemon, image: str, engine_host: str) -> None:
    save = ["docker", "--host", engine_host, "save", image]
    with subprocess.Popen(save, stdout=subprocess.PIPE) as saved:
        command = ["docker", "--host", daemon.engine.host, "load", "--quiet"]
        subprocess.run(command, stdin=saved.stdout, check=True, stdout=subprocess.DEVNULL)


def test_an_engine_that_dies_in_a_build_is_told_and_the_next_build_works(
    root: Path, closer: ExitStack, engine_host: str, base_image: str
) -> None:
    """D3."""
    daemon = Daemon(root, root / "data")
    seconds = str(30_000 + uuid.uuid4().int % 10_000)
    daemon.start()
    try:
        load(daemon, base_image, engine_host)
        engine = closer.enter_context(closing(Engine.connect(daemon.engine.env)))
        base = resolve_base(engine, base_image, engine.platform)

        def build(line: str) -> None:
            buildx.build(
                engine,
                context(base, line, "USER 10001:0"),
                platform=engine.platform,
                base=base,
                secrets={},
                ca_bundle=None,
                tags=["mlimg.local/it:key"],
                report=Steps(),
                timeout_seconds=120,
            )

        def kill_in_the_step() -> None:
            while not processes(seconds):
                time.sleep(0.02)
            daemon.kill()

        killer = threading.Thread(target=kill_in_the_step)
        killer.start()
        with pytest.raises(EngineError) as failed:
            build(f"RUN --network=none sleep {seconds}")
        killer.join()
        assert failed.value.status == 14
        # What an engine that was killed leaves running is not ours to end in earnest; here it is.
        subprocess.run(["pkill", "-KILL", "-f", f"^sleep {seconds}$"], check=False)
        assert until_gone(seconds, 5)

        daemon.start()
        assert engine.image("mlimg.local/it:key") is None
        build("RUN --network=none true > /x")
        assert engine.image("mlimg.local/it:key") is not None
    finally:
        daemon.stop()


def test_a_full_engine_is_told_and_nothing_is_left(
    root: Path, closer: ExitStack, engine_host: str, base_image: str
) -> None:
    """D7, with the twin that fits."""
    disk, data = root / "disk", root / "data"
    data.mkdir()
    with disk.open("wb") as file:
        file.truncate(400 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, data], check=True)
    daemon = Daemon(root, data)
    try:
        daemon.start()
        load(daemon, base_image, engine_host)
        engine = closer.enter_context(closing(Engine.connect(daemon.engine.env)))
        server = engine.image(base_image)
        assert server is not None
        before = daemon.engine.image_ids()

        big = layer("weights", os.urandom(220_000_000))
        image = append(server.image, [big], {"io.mlimg.model.name": "m"})
        with pytest.raises(EngineError, match=r"needs \d+ bytes .* and \d+ are free"):
            load_model(engine, server, image, [big], tags=["mlimg.local/it:1"])
        engine.info = replace(engine.info, is_local=False)  # as if its disk could not be seen from here
        with pytest.raises(EngineError, match="no space left") as failed:
            load_model(engine, server, image, [big], tags=["mlimg.local/it:1"])
        assert "disk is full" in failed.value.hint
        assert daemon.engine.image_ids() == before

        base = resolve_base(engine, base_image, engine.platform)
        with pytest.raises(EngineError) as failed:
            buildx.build(
                engine,
                context(base, "RUN --network=none head -c 500M /dev/urandom > /big", "USER 10001:0"),
                platform=engine.platform,
                base=base,
                secrets={},
                ca_bundle=None,
                tags=["mlimg.local/it:key"],
                report=Steps(),
                timeout_seconds=120,
            )
        assert "disk is full" in failed.value.hint
        assert engine.image("mlimg.local/it:key") is None

        daemon.engine.docker("builder", "prune", "--all", "--force")  # as the hint says
        small = layer("weights", os.urandom(1_000_000))
        image = append(server.image, [small], {"io.mlimg.model.name": "m"})
        assert load_model(engine, server, image, [small], tags=["mlimg.local/it:1"]).id in daemon.engine.image_ids()
    finally:
        daemon.stop()
        subprocess.run(["umount", "-l", data], check=False)
