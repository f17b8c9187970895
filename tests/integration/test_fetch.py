"""Fetching from a real registry by real processes, killed, starved and side by side. Bars: E27, G1, G3, G4, G7.

What came over the network is counted by a line between them.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlimg.runtime.oci import Access
from mlimg.runtime.stores import open_store
from tests.support.lines import Line
from tests.support.payloads import payload
from tests.support.rounds import rounds
from tests.support.servers import ECHO, ROOT, free_port, running, server_folder
from tests.support.stores import docker_registry

MIB = 2**20
FILES = {"weights.bin": random.Random(1).randbytes(80 * MIB), "more/words.txt": b"one two three"}
SIZE = sum(len(data) for data in FILES.values())
OVERHEAD_BYTES = MIB  # manifests, headers, small files
BLOCK_BYTES = 4 * MIB
CONNECTIONS = 8


@pytest.fixture(scope="module")
def place(memory_folder: Path) -> Path:
    """The registry's folder."""
    folder = memory_folder / "fetch"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def models(place: Path) -> Iterator[str]:
    """A real registry with a model; its host and port."""
    with docker_registry(place) as host:
        open_store(f"oci://{host}/models", Access()).publish(payload(FILES))
        yield host


@pytest.fixture
def into(memory_folder: Path) -> Iterator[Path]:
    """An empty folder in memory, for models."""
    folder = memory_folder / f"into-{time.monotonic_ns()}"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def fetching(host: str, folder: Path, model: str = "models/digits:3", **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlimg.runtime", "fetch", f"oci://{host}/{model}", str(folder)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetched(host: str, folder: Path, model: str = "models/digits:3") -> Path:
    process = fetching(host, folder, model)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return Path(printed.strip())


def check(folder: Path) -> None:
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def blocks(folder: Path) -> int:
    """How many blocks of the large file are complete, by its journal."""
    journals = list(folder.glob(".mlimg-scratch/*/files/*.blocks"))
    return sum(len(journal.read_text().splitlines()) - 1 for journal in journals)


@pytest.mark.parametrize("percent", [1, 50, 90])
def test_g3_a_fetch_that_was_killed_is_taken_up(models: str, into: Path, percent: int) -> None:
    for _ in range(rounds(2)):
        with Line(models, bytes_per_second=10 * MIB) as line:
            process = fetching(line.host, into)
            deadline = time.monotonic() + 60
            while line.received_bytes < SIZE * percent // 100:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            process.communicate()
            received = line.received_bytes
        assert not list(into.glob(".mlimg/*/mlimg.manifest"))
        here = blocks(into) * BLOCK_BYTES
        # What every connection had of its block is lost, and what was in the kernel's buffers.
        assert here >= received - CONNECTIONS * (BLOCK_BYTES + 2 * MIB) - OVERHEAD_BYTES
        with Line(models) as line:
            check(fetched(line.host, into))
            assert line.received_bytes <= SIZE - here + OVERHEAD_BYTES
        assert not list(into.glob(".mlimg-scratch/*/*"))
        subprocess.run(["rm", "-rf", *map(str, into.iterdir())], check=True)


def test_g3_leftovers_that_somebody_altered_are_not_used(models: str, into: Path) -> None:
    with Line(models, bytes_per_second=10 * MIB) as line:
        process = fetching(line.host, into)
        while blocks(into) < 5:
            time.sleep(0.005)
        process.kill()
        process.communicate()
    (part,) = (path for path in into.glob(".mlimg-scratch/*/files/*") if path.suffix != ".blocks")
    with part.open("r+b") as file:
        for start in range(0, len(FILES["weights.bin"]), BLOCK_BYTES):
            file.seek(start)
            file.write(b"altered")
    check(fetched(models, into))


def test_g7_eight_replicas_fetch_once(models: str, into: Path) -> None:
    with Line(models) as line:
        replicas = [fetching(line.host, into) for _ in range(8)]
        printed = [replica.communicate(timeout=120) for replica in replicas]
        assert [replica.returncode for replica in replicas] == [0] * 8, printed
        assert line.received_bytes < SIZE + 8 * OVERHEAD_BYTES
    (folder,) = {out.strip() for out, _ in printed}
    check(Path(folder))


def test_a_new_version_with_new_weights_moves_no_small_file(models: str, into: Path) -> None:
    small = {"config.json": b"{}", "tokens/words.txt": random.Random(2).randbytes(40 * MIB)}
    weights = [random.Random(number).randbytes(70 * MIB) for number in (3, 4)]
    store = open_store(f"oci://{models}/shared", Access())
    for number, data in enumerate(weights):
        store.publish(payload({"weights.bin": data, **small}, version=str(number)))
    received = []
    for number in range(2):
        with Line(models) as line:
            folder = fetched(line.host, into, f"shared/digits:{number}")
            received.append(line.received_bytes)
        files = {"weights.bin": weights[number], **small}
        assert {name: (folder / name).read_bytes() for name in files} == files
    assert received[0] > 110 * MIB  # the twin
    assert 70 * MIB < received[1] < 70 * MIB + OVERHEAD_BYTES, received


@contextmanager
def rotten(place: Path, digest: str, at: int) -> Iterator[None]:
    """Flip a bit of a blob in the registry's storage, for a while."""
    # https://distribution.github.io/distribution/about/architecture/
    hex_digits = digest.removeprefix("sha256:")
    blob = place / "data/docker/registry/v2/blobs/sha256" / hex_digits[:2] / hex_digits / "data"
    with blob.open("r+b") as file:
        file.seek(at)
        before = file.read(1)
        file.seek(at)
        file.write(bytes([before[0] ^ 1]))
    try:
        yield
    finally:
        with blob.open("r+b") as file:
            file.seek(at)
            file.write(before)


def test_e27_a_blob_that_rotted_in_the_registry_is_refused(models: str, place: Path, into: Path) -> None:
    with rotten(place, str(payload(FILES).layers[0].digest), 50 * MIB):
        process = fetching(models, into)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 18, errors
        assert "weights.bin" in errors
        assert not list(into.glob(".mlimg/*/*"))
    check(fetched(models, into))


def verified(host: str, tag: str = "3") -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("mlimg")), "verify", f"oci://{host}/models/digits:{tag}", "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_e27_verify_finds_what_rotted_in_the_registry_and_nothing_else(models: str, place: Path) -> None:
    digests = [str(layer.digest) for layer in payload(FILES).layers]
    manifest = json.loads(verified(models).stdout)["reference"].partition("@")[2]
    for digest, at in ((digests[0], 50 * MIB), (digests[-1], 600), (manifest, 40)):
        with rotten(place, digest, at):
            done = verified(models)
            assert done.returncode == 18, done.stderr
            error = json.loads(done.stdout)["error"]
            named = f"{error['object']}: {error['fact']}"
            assert (digest in named) or (digest == manifest and "digits:3" in named)
            assert not [other for other in digests if other != digest and other in named]
    done = verified(models)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size_bytes"] > SIZE


def test_g4_a_volume_that_is_too_small_is_told_before_the_first_byte(models: str, into: Path) -> None:
    for size, status in ((SIZE // MIB - 10, 20), (SIZE // MIB + 20, 0)):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", str(into)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("this process may not mount anything")
        try:
            with Line(models) as line:
                process = fetching(line.host, into)
                _, errors = process.communicate(timeout=60)
                assert process.returncode == status, errors
                if status:
                    assert "free" in errors
                    assert line.received_bytes < OVERHEAD_BYTES
        finally:
            subprocess.run(["umount", str(into)], check=True)


def test_g1_a_registry_that_is_down_at_boot_is_waited_for(models: str, place: Path, tmp_path: Path, into: Path) -> None:
    port = free_port()
    environ = {
        "MLIMG_SERVER_DIR": str(server_folder(tmp_path / "server", ECHO)),
        "MLIMG_MODEL_DIR": str(into),
        "MLIMG_MODEL": f"oci://127.0.0.1:{port}/models/digits:3",
    }
    with running(environ) as serving:
        serving.wait_until(503)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert serving.ready() == 503
        with docker_registry(place, port=port):
            serving.wait_until(200)
        serving.signal()
        assert serving.end()[0] == 0
    with running({**environ, "MLIMG_FETCH_TIMEOUT_SECONDS": "1", "MLIMG_MODEL_DIR": str(into / "other")}) as serving:
        assert serving.end()[0] == 17
