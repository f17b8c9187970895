"""A push whose process is stopped, interrupted twice, or given little by its machine: I2, I4, I7.

A real registry behind a proxy that can hold an upload; what was published is read from the registry itself.
"""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_release_jobs import Job, Pushed, new_job
from tests.support.faults import Fault
from tests.support.projects import NOWHERE, manifest_of, tags_of

MIB = 1024**2
NO_TRACE = "Traceback"


@pytest.fixture
def job(memory_folder: Path, tmp_path: Path) -> Iterator[Job]:
    with new_job(memory_folder / "process", tmp_path) as made:
        yield made


def held(job: Job) -> "subprocess.Popen[str]":
    """A push one of whose uploads the registry does not answer."""
    fault = Fault("PUT", "/blobs/uploads/", delay_seconds=60)
    job.proxy.faults.append(fault)
    run = job.start()
    deadline = time.monotonic() + 60
    while not fault.fired:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return run


def assert_published(job: Job) -> None:
    """The image is there with the bytes of the file."""
    layers = manifest_of(f"{job.registry}/serving/echo:1")["layers"]
    blobs = [job.blob("serving/echo", layer["digest"]) for layer in layers]
    assert [f"sha256:{hashlib.sha256(blob).hexdigest()}" for blob in blobs] == [layer["digest"] for layer in layers]
    weights = (job.folder / "model" / "weights.bin").read_bytes()
    assert sum(weights in blob for blob in blobs) == 1


@pytest.mark.parametrize("times", [1, 2])
def test_i2_a_second_interrupt_ends_at_once_and_the_next_run_succeeds(job: Job, times: int) -> None:
    job.write(3 * MIB)
    run = held(job)
    for _ in range(times):
        run.send_signal(signal.SIGINT)
        last = time.monotonic()
        time.sleep(0.02)
    ended = Pushed.of(run)
    assert time.monotonic() - last < (2.5 if times == 1 else 1.0)
    assert ended.status == 130
    assert NO_TRACE not in ended.stderr
    assert tags_of(f"{job.registry}/serving/echo") == []
    job.proxy.open_stalls.set()
    assert job.push().status == 0
    assert_published(job)


def test_i4_a_process_that_is_stopped_for_a_while_goes_on(job: Job) -> None:
    job.write(3 * MIB)
    run = held(job)
    run.send_signal(signal.SIGSTOP)
    job.proxy.open_stalls.set()  # the answer comes, and connections time out, while nobody listens
    time.sleep(5)
    state = Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "T"
    run.send_signal(signal.SIGCONT)
    ended = Pushed.of(run)
    assert ended.status == 0, ended.stderr
    assert_published(job)


@pytest.mark.parametrize(
    ("limit", "statuses"),
    [("-n 32", {0}), ("-n 12", {0, 20, 21}), ("-v 524288", {0, 20, 21}), ("-v 90000", {0, 20, 21}), ("-f 1", {0, 20})],
)
def test_i7_little_of_everything_is_enough_or_told_in_one_line(job: Job, limit: str, statuses: set[int]) -> None:
    job.write(3 * MIB)
    done = subprocess.run(
        ["sh", "-c", f'ulimit {limit}; exec "$0" "$@"', *job.command()],
        cwd=job.folder,
        env=os.environ | {"DOCKER_HOST": NOWHERE},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in statuses, done.stderr
    assert NO_TRACE not in done.stderr
    if done.returncode:
        assert tags_of(f"{job.registry}/serving/echo") == []
        assert job.push().status == 0  # the twin
    assert_published(job)
