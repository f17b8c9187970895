"""What a training job does: it pushes models to a real registry on a machine without an engine.

A proxy in front of the registry counts the bytes; the server is a small image that stands for one that CI has pushed.
"""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from mlimg.runtime.manifest import ModelManifest
from tests.support.faults import Answer, Fault, FaultServer, forward_to
from tests.support.projects import MLIMG, NOWHERE, digest_of, manifest_of, tags_of
from tests.support.published import publish_server, write_project
from tests.support.rounds import rounds
from tests.support.stores import docker_registry

MIB = 1024**2


@dataclass
class Job:
    """A folder with a spec and a model, whose names lead to the registry through a proxy that counts."""

    folder: Path
    registry: str
    proxy: FaultServer

    def write(self, size_bytes: int) -> Path:
        """Write a model of one file that nobody can compress."""
        (self.folder / "model").mkdir(exist_ok=True)
        path = self.folder / "model" / "weights.bin"
        path.write_bytes(os.urandom(size_bytes))
        return path

    def command(self, *arguments: str, pattern: str = "in-image") -> list[str]:
        return [str(MLIMG), "build", "--push", "--json", "--pattern", pattern, *arguments]

    def start(self, *arguments: str, pattern: str = "in-image") -> "subprocess.Popen[str]":
        """Begin a push."""
        return subprocess.Popen(
            self.command(*arguments, pattern=pattern),
            cwd=self.folder,
            env=os.environ | {"DOCKER_HOST": NOWHERE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def push(self, *arguments: str, pattern: str = "in-image") -> "Pushed":
        """Push to the end."""
        return Pushed.of(self.start(*arguments, pattern=pattern))

    def uploaded_bytes(self) -> int:
        """What clients have sent of blobs."""
        return sum(len(request.body) for request in self.proxy.matching("PUT|PATCH", "/blobs/uploads/"))

    def blob(self, repository: str, digest: str) -> bytes:
        """A blob as the registry serves it."""
        with urllib.request.urlopen(f"http://{self.registry}/v2/{repository}/blobs/{digest}") as response:
            data: bytes = response.read()
            return data


@dataclass(frozen=True)
class Pushed:
    """What a push left."""

    status: int
    stdout: str
    stderr: str

    @classmethod
    def of(cls, process: "subprocess.Popen[str]") -> "Pushed":
        stdout, stderr = process.communicate(timeout=120)
        return cls(process.returncode, stdout, stderr)

    @property
    def pinned(self) -> str:
        """The digest of the image, or of the model where there is none."""
        assert self.status == 0, self.stderr
        release = json.loads(self.stdout)
        pinned: str = (release["image"] or release["model"])["pinned"]
        return pinned.partition("@")[2]


@contextmanager
def new_job(data: Path, folder: Path) -> Iterator[Job]:
    """A job in `folder`, whose registry keeps its blobs in `data` for so long."""
    data.mkdir()
    try:
        with docker_registry(data) as host, FaultServer(forward_to(host)) as proxy:
            folder.mkdir(exist_ok=True)
            write_project(folder, proxy.host)
            made = Job(folder, host, proxy)
            publish_server(folder)
            yield made
    finally:
        shutil.rmtree(data)


@pytest.fixture
def job(memory_folder: Path, tmp_path: Path) -> Iterator[Job]:
    with new_job(memory_folder / "job", tmp_path / "job") as made:
        yield made


def test_i8_ten_runs_of_one_spec_at_once_all_succeed_with_one_upload(job: Job) -> None:
    size = job.write(70 * MIB).stat().st_size
    before = job.uploaded_bytes()
    runs = [job.start() for _ in range(10)]
    ended = [Pushed.of(run) for run in runs]
    assert {run.pinned for run in ended} == {digest_of(f"{job.registry}/serving/echo:1")}
    assert size < job.uploaded_bytes() - before < size + MIB
    assert sum("another run pushes this spec" in run.stderr for run in ended) >= 1


@pytest.mark.parametrize("pattern", ["in-image", "load"])
def test_e13_of_two_machines_that_push_other_models_at_once_at_most_one_succeeds(
    job: Job, tmp_path: Path, pattern: str
) -> None:
    """Each has its own folder, so that no lock is between them. What the registry has afterwards is the winner's."""
    other = Job(tmp_path / "other", job.registry, job.proxy)
    shutil.copytree(job.folder, other.folder)
    rivals = (job, other)
    place, tags = ("serving/echo", ("{}", "{}-1.0")) if pattern == "in-image" else ("models/echo", ("{}",))
    outcomes: list[tuple[int, ...]] = []
    for version in range(1, rounds(3) + 1):
        for rival in rivals:
            rival.write(1000)
        ended = [
            Pushed.of(run)
            for run in [rival.start("--set", f"model.version={version}", pattern=pattern) for rival in rivals]
        ]
        outcomes.append(tuple(sorted(run.status for run in ended)))
        assert outcomes[-1] in {(0, 19), (19, 19)}, [run.stderr for run in ended]
        for winner in (run for run in ended if run.status == 0):
            for tag in tags:
                assert digest_of(f"{job.registry}/{place}:{tag.format(version)}") == winner.pinned
    # The twin: the same bytes are no conflict, whoever comes first.
    shutil.copyfile(job.folder / "model" / "weights.bin", other.folder / "model" / "weights.bin")
    both = [rival.start("--set", "model.version=same", pattern=pattern) for rival in rivals]
    assert {Pushed.of(run).pinned for run in both} == {digest_of(f"{job.registry}/{place}:same")}


@pytest.mark.parametrize("pattern", ["in-image", "load"])
def test_the_second_run_sends_nothing_and_another_machine_no_model_bytes(
    job: Job, tmp_path: Path, pattern: str
) -> None:
    job.write(70 * MIB)
    (job.folder / "model" / "labels.bin").write_bytes(os.urandom(6 * MIB))  # in the last layer, behind the manifest
    first = job.push(pattern=pattern)
    read: list[int] = []

    def count(answer: Answer) -> Answer:
        read.append(len(cast("bytes", answer.body)))
        return answer

    job.proxy.faults.append(Fault("GET", "/blobs/", times=10**6, change=count))
    writes, sent = job.proxy.count("PUT|POST|PATCH|DELETE"), job.uploaded_bytes()
    assert job.push(pattern=pattern).pinned == first.pinned
    assert job.proxy.count("PUT|POST|PATCH|DELETE") == writes
    assert sum(read) < 64 * 1024

    shutil.copytree(job.folder, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(".mlimg"))
    elsewhere = Job(tmp_path / "elsewhere", job.registry, job.proxy)
    other = "load" if pattern == "in-image" else "in-image"
    assert elsewhere.push(pattern=other).status == 0
    assert job.uploaded_bytes() - sent < 20_000, "configs"
    layers = [
        {layer["digest"] for layer in manifest_of(f"{job.registry}/{place}:1")["layers"]}
        for place in ("models/echo", "serving/echo")
    ]
    assert layers[0] <= layers[1]


def kill(job: Job, run: "subprocess.Popen[str]", uploaded_bytes: int) -> None:
    """Kill a push when so much of it has been sent."""
    deadline = time.monotonic() + 60
    while job.uploaded_bytes() < uploaded_bytes:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.communicate()


@pytest.mark.parametrize("pattern", ["in-image", "load"])
def test_e5_a_push_that_was_killed_in_a_blob_goes_on_where_it_was(job: Job, pattern: str) -> None:
    """Between two chunks: docker-registry keeps the session."""
    size = job.write(160 * MIB).stat().st_size
    place = "serving/echo" if pattern == "in-image" else "models/echo"
    before = job.uploaded_bytes()
    third = Fault("PATCH", "uploads", skip=2, delay_seconds=60, answer=Answer(503))  # never reaches the registry
    job.proxy.faults.append(third)
    kill(job, job.start(pattern=pattern), before + 90 * MIB)
    assert third.fired == 1
    assert tags_of(f"{job.registry}/{place}") == []
    again = job.push(pattern=pattern)
    assert again.pinned == digest_of(f"{job.registry}/{place}:1")
    assert "goes on at 64 of 160 MiB" in again.stderr
    assert job.uploaded_bytes() - before <= size + 33 * MIB, "no more than the chunk that was on its way is sent twice"


def test_e5_a_push_that_was_killed_in_a_chunk_is_sent_again(job: Job) -> None:
    """docker-registry loses a session that was cut in a chunk."""
    size = job.write(160 * MIB).stat().st_size
    before = job.uploaded_bytes()
    kill(job, job.start(), before + 64 * MIB)
    assert tags_of(f"{job.registry}/serving/echo") == []
    assert job.push().pinned == digest_of(f"{job.registry}/serving/echo:1")
    assert job.uploaded_bytes() - before <= 2 * size


def swap(path: Path, stop: threading.Event) -> None:
    """Write other bytes over the file and in its place, again and again, with the times it had."""
    status, byte = path.stat(), 0
    spare = path.with_name("..") / "spare"
    while not stop.is_set():
        byte ^= 1
        if byte:
            with path.open("r+b", buffering=0) as file:
                file.seek(33 * MIB)
                file.write(bytes([random.randrange(256)]))
        else:
            shutil.copyfile(path, spare)
            spare.replace(path)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        stop.wait(random.random() / 20)


def test_b3_what_is_published_is_what_its_record_says_though_the_file_never_rests(job: Job) -> None:
    path = job.write(66 * MIB)
    for version in range(1, rounds(4) + 1):
        stop = threading.Event()
        writer = threading.Thread(target=swap, args=(path, stop))
        run = job.start("--set", f"model.version=v{version}")
        # Half of the time the writer rests until the push is nearly over, else nothing would ever get through.
        if version % 2:
            writer.start()
        try:
            ended = Pushed.of(run)
        finally:
            stop.set()
            if writer.is_alive():
                writer.join()
        assert ended.status in {0, 12}, ended.stderr
        if ended.status:
            assert f"v{version}" not in tags_of(f"{job.registry}/serving/echo")
            continue
        _, large, last = manifest_of(f"{job.registry}/serving/echo:v{version}")["layers"]
        told = ModelManifest.parse(_file(job.blob("serving/echo", last["digest"]), "models/mlimg.manifest"))
        sent = _file(job.blob("serving/echo", large["digest"]), "models/weights.bin")
        assert told.files[0].sha256.hex == hashlib.sha256(sent).hexdigest()


def change(path: Path, offset: int) -> None:
    """Change a byte in place, and give the file the times it had."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert path.stat().st_ino == status.st_ino


def test_b3_a_file_that_is_changed_while_it_is_pushed_is_refused_and_the_next_run_sends_it(job: Job) -> None:
    path = job.write(99 * MIB)
    before = job.uploaded_bytes()
    second = Fault("PATCH", "uploads", skip=1, delay_seconds=3)
    job.proxy.faults.append(second)
    run = job.start()
    while job.uploaded_bytes() < before + 33 * MIB:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.005)
    change(path, 98 * MIB)
    refused = Pushed.of(run)
    assert second.fired == 1
    assert refused.status == 12, refused.stderr
    assert "changed while it was read" in refused.stderr
    assert tags_of(f"{job.registry}/serving/echo") == []
    assert job.push().status == 0
    # Nothing was learned from the run that was refused, and nothing of the old bytes is taken for the new ones.
    change(path, 33 * MIB)
    assert job.push("--set", "model.version=2").status == 0
    _, large, _ = manifest_of(f"{job.registry}/serving/echo:2")["layers"]
    assert _file(job.blob("serving/echo", large["digest"]), "models/weights.bin") == path.read_bytes()


def _file(tar: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        file = opened.extractfile(name)
        assert file is not None
        return file.read()


def test_c7_a_large_model_is_pushed_in_little_memory(job: Job) -> None:
    """`tests/bench/memory.py` has larger ones."""
    (job.folder / "model").mkdir()
    with (job.folder / "model" / "weights.bin").open("wb") as file:
        file.truncate(700 * MIB)
    text = (job.folder / "mlimg.yaml").read_text()
    (job.folder / "mlimg.yaml").write_text(text.replace(job.proxy.host, job.registry))  # the proxy keeps what it sees
    publish_server(job.folder)
    # A small process in between: the peak of a child begins with that of the process that started it.
    weigh = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", weigh, *job.command()],
        cwd=job.folder,
        env=os.environ | {"DOCKER_HOST": NOWHERE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    layers = manifest_of(f"{job.registry}/serving/echo:1")["layers"]
    assert sum(layer["size"] for layer in layers) > 700 * MIB
    assert int(done.stdout) < 256 * 1024


def test_a_machine_without_engine_cannot_make_a_server(job: Job) -> None:
    """The twin of all the above: no engine is asked for as long as the server is there."""
    job.write(1000)
    assert job.push().status == 0
    missing = job.push("--set", "server.version=1.1", "--set", "model.version=2")
    assert missing.status == 14, missing.stderr
    with suppress(ValueError):
        assert "2" not in tags_of(f"{job.registry}/serving/echo")
