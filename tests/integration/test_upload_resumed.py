"""Uploads that are cut, on their way into a real registry. Bars: E5, E6, E9, E29.

The registry writes while it reads, and gives up a session in whose chunk the connection broke. A proxy that hands on
whole chunks alone, as nginx does, keeps it from that.
"""

import json
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from mlimg.runtime.descriptor import OCI_CONFIG, OCI_MANIFEST, MemoryBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import RemoteTemporaryError
from mlimg.runtime.oci import Access, Journal, Registry, push_blobs
from mlimg.runtime.oci import strategy as strategies
from mlimg.runtime.reference import ImageReference
from tests.support.faults import Answer, Fault, FaultServer, forward_to

CHUNK = 1_000_000
DATA = random.Random(5).randbytes(4 * CHUNK)
QUICK = Access(backoff_seconds=0.05)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def repository() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


def at(host: str, repository: str) -> ImageReference:
    return ImageReference.parse(f"{host}/{repository}:1")


def received(server: FaultServer) -> int:
    return sum(len(request.body) for request in server.matching("PATCH|PUT", "uploads"))


def stored(registry: str, repository: str) -> bytes:
    """What another client finds."""
    name = f"{registry}/{repository}@{Digest.of(DATA)}"
    command = ["oras", "blob", "fetch", "--plain-http", "--output", "-", name]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
@pytest.mark.parametrize("reset", [False, True], ids=["cut", "RST"])
def test_e5_a_chunk_that_is_cut_before_the_registry_is_sent_again(
    registry: str, repository: str, percent: int, reset: bool
) -> None:
    fault = Fault("PATCH", skip=2, cut_request_at=CHUNK * percent // 100, reset_request=reset)
    with FaultServer(forward_to(registry), fault) as server:
        Registry(QUICK).push_blob(at(server.host, repository), MemoryBlob(DATA))
        assert received(server) == len(DATA) + CHUNK * percent // 100
    assert fault.fired == 1
    assert stored(registry, repository) == DATA


@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
def test_e5_a_session_that_the_registry_gives_up_is_the_whole_blob_once_more(
    registry: str, repository: str, percent: int
) -> None:
    notes: list[str] = []
    fault = Fault("PATCH", skip=2, cut_request_at=CHUNK * percent // 100, pass_cut=True)
    with FaultServer(forward_to(registry), fault) as server:
        Registry(QUICK).push_blob(at(server.host, repository), MemoryBlob(DATA), on_note=notes.append)
        assert received(server) <= 2 * len(DATA)
        assert server.count("POST") == (2 if percent else 1)
    assert fault.fired == 1
    assert len(notes) == (1 if percent else 0)
    assert stored(registry, repository) == DATA


@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
def test_e5_a_stream_that_is_cut_is_sent_once_more(
    registry: str, repository: str, percent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategies, "CHUNK_BYTES", len(DATA))
    fault = Fault("PUT", "uploads", cut_request_at=len(DATA) * percent // 100, pass_cut=True)
    with FaultServer(forward_to(registry), fault) as server:
        Registry(QUICK).push_blob(at(server.host, repository), MemoryBlob(DATA))
        assert received(server) <= 2 * len(DATA)
    assert fault.fired == 1
    assert stored(registry, repository) == DATA


def test_e6_a_commit_whose_answer_was_lost_is_found(registry: str, repository: str) -> None:
    fault = Fault("PUT", "uploads", lose_answer=True)
    with FaultServer(forward_to(registry), fault) as server:
        Registry(QUICK).push_blob(at(server.host, repository), MemoryBlob(DATA))
        assert received(server) == len(DATA)
    assert fault.fired == 1
    assert stored(registry, repository) == DATA


def test_e9_the_registry_takes_a_gapped_chunk_and_we_send_none(registry: str, repository: str, tmp_path: Path) -> None:
    """What the registry says it has decides, also where another hand has put bytes into the session."""
    cut = Fault("PATCH", skip=2, times=99, answer=Answer(503))
    with FaultServer(forward_to(registry), cut) as server, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(server.host, repository), MemoryBlob(DATA), journal=Journal(tmp_path))
    (note,) = tmp_path.glob("*.json")
    entry = json.loads(note.read_text())
    # A chunk from beyond the end: 2.8.3 appends it, and counts it.
    with FaultServer(forward_to(registry)) as server:
        path = entry["location"].partition(entry["registry"])[2]
        gapped = ["curl", "--silent", "--fail", "--dump-header", "-", "--request", "PATCH", "--data-binary", "@-"]
        headers = ["--header", f"Content-Range: {8 * CHUNK}-{10 * CHUNK - 1}", "--header", "Content-Type:"]
        url = f"http://{server.host}{path}"
        answer = subprocess.run([*gapped, *headers, url], input=bytes(2 * CHUNK), capture_output=True, check=True)
        taken = dict(line.split(": ", 1) for line in answer.stdout.decode().splitlines() if ": " in line)
        assert taken["Range"] == f"0-{4 * CHUNK - 1}"
        entry["location"] = taken["Location"].replace(server.host, entry["registry"])
    note.write_text(json.dumps(entry))
    with FaultServer(forward_to(registry), port=int(entry["registry"].rpartition(":")[2])) as server:
        Registry(QUICK).push_blob(at(server.host, repository), MemoryBlob(DATA), journal=Journal(tmp_path))
        assert received(server) == len(DATA)
    assert stored(registry, repository) == DATA


PUSH = """
import sys
from pathlib import Path
from mlimg.runtime.descriptor import MemoryBlob
from mlimg.runtime.oci import Journal, push_blobs, strategy
from mlimg.runtime.reference import ImageReference
from tests.integration.test_upload_resumed import CHUNK, DATA, QUICK
strategy.CHUNK_BYTES = CHUNK
push_blobs(QUICK, ImageReference.parse(sys.argv[1]), [MemoryBlob(DATA)], journal=Journal(Path(sys.argv[2])))
"""


@pytest.mark.parametrize("number", range(4))
def test_e5_a_killed_process_is_gone_on_with(registry: str, repository: str, tmp_path: Path, number: int) -> None:
    stalled = Fault("PATCH", skip=number, delay_seconds=60, answer=Answer(503))
    notes: list[str] = []
    with FaultServer(forward_to(registry), stalled) as server:
        reference = at(server.host, repository)
        with subprocess.Popen([sys.executable, "-c", PUSH, str(reference), str(tmp_path)]) as process:
            deadline = time.monotonic() + 60
            while server.count("PATCH") <= number and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        before = received(server)
        assert before == (number + 1) * CHUNK
        push_blobs(QUICK, reference, [MemoryBlob(DATA)], journal=Journal(tmp_path), on_note=notes.append)
        assert received(server) - before == len(DATA) - number * CHUNK
    assert stalled.fired == 1
    assert len(notes) == (1 if number else 0)
    assert stored(registry, repository) == DATA
    assert not list(tmp_path.iterdir())


def test_e29_a_registry_whose_disk_is_full_keeps_the_old_tag(registry_small: str, repository: str) -> None:
    registry, reference = Registry(QUICK), at(registry_small, repository)
    config = MemoryBlob(b"{}")
    registry.push_blob(reference, config)
    descriptor = {"mediaType": OCI_CONFIG, "digest": config.digest.text, "size": 2}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": []}).encode()
    pushed = registry.push_manifest(reference, manifest, OCI_MANIFEST)
    registry.push_blob(reference, MemoryBlob(DATA[: 2 * CHUNK]))  # the twin: it fits
    with pytest.raises(RemoteTemporaryError, match="500"):
        registry.push_blob(reference, MemoryBlob(DATA * 3))
    assert registry.has_blob(reference, Digest.of(DATA * 3)) is None
    resolved = subprocess.run(
        ["oras", "resolve", "--plain-http", str(reference)], check=True, capture_output=True, text=True
    )
    assert resolved.stdout.strip() == pushed.digest.text
