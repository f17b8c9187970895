"""Pushing through a server that fails on purpose. Bars: E1-E3, E5-E8, E15, E21."""

import contextlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from mlimg.runtime.descriptor import OCI_MANIFEST, Blob, MemoryBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    ConflictError,
    CredentialsError,
    IntegrityError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
)
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.oci.credentials import Credentials
from mlimg.runtime.reference import ImageReference
from tests.support.blobs import OnItsWay
from tests.support.faults import Answer, Fault, FaultServer
from tests.support.registry import MemoryRegistry

DATA = random.Random(1).randbytes(400_000)
QUICK = Access(backoff_seconds=0.01, stall_seconds=1)


@pytest.fixture
def memory() -> MemoryRegistry:
    return MemoryRegistry()


def at(server: FaultServer, tag: str = "1") -> ImageReference:
    return ImageReference.parse(f"{server.host}/team/app:{tag}")


@pytest.mark.parametrize("blob", [MemoryBlob(DATA), OnItsWay(DATA)], ids=["known digest", "hashed on its way"])
def test_a_blob_goes_in_one_stream(memory: MemoryRegistry, blob: Blob) -> None:
    moved: list[int] = []
    with FaultServer(memory) as server:
        pushed = Registry(QUICK).push_blob(at(server), blob, on_bytes=moved.append)
    assert (pushed.how, pushed.sent_bytes, sum(moved)) == ("sent", len(DATA), len(DATA))
    assert memory.blobs[("team/app", pushed.digest.text)] == DATA
    assert not memory.sessions


def test_a_blob_that_is_there_does_not_move(memory: MemoryRegistry) -> None:
    memory.put("team/app", DATA)
    with FaultServer(memory) as server:
        pushed = Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert (pushed.how, pushed.sent_bytes) == ("exists", 0)
        assert [request.method for request in server.requests] == ["HEAD"]


def test_a_blob_of_another_repository_is_mounted(memory: MemoryRegistry) -> None:
    memory.put("team/models", DATA)
    with FaultServer(memory) as server:
        pushed = Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), mount_from=["team/none", "team/models"])
        assert (pushed.how, pushed.sent_bytes) == ("mounted", 0)
    assert not memory.sessions  # the session that the first repository opened instead is cancelled
    assert ("team/app", Digest.of(DATA).text) in memory.blobs


class Waits:
    """A stop that nobody asks for, and that notes how long was to be waited instead of waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def is_set(self) -> bool:
        return False

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH"])
def test_e2_temporary_answers_are_asked_again(memory: MemoryRegistry, status: int, method: str) -> None:
    fault = Fault(method, times=2, answer=Answer(status))
    blob = OnItsWay(DATA) if method == "PATCH" else MemoryBlob(DATA)
    with FaultServer(memory, fault) as server:
        pushed = Registry(QUICK).push_blob(at(server), blob)
    assert fault.fired == 2
    assert memory.blobs[("team/app", pushed.digest.text)] == DATA


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
def test_e2_patience_ends(memory: MemoryRegistry, method: str) -> None:
    """One failure fewer than there are attempts is the twin."""
    fault = Fault(method, times=QUICK.attempts, answer=Answer(503))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError, match="503"):
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert fault.fired == QUICK.attempts
    assert not memory.blobs
    assert not memory.sessions
    twin = Fault(method, times=QUICK.attempts - 1, answer=Answer(503))
    with FaultServer(memory, twin) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert twin.fired == QUICK.attempts - 1
    assert ("team/app", Digest.of(DATA).text) in memory.blobs


def test_e2_clients_do_not_come_back_all_at_once(memory: MemoryRegistry) -> None:
    waits: list[list[float]] = []
    for _ in range(20):
        fault = Fault("HEAD", times=4, answer=Answer(503))
        noted = Waits()
        with FaultServer(memory, fault) as server:
            Registry(Access(backoff_seconds=1), noted).push_blob(at(server), MemoryBlob(DATA))  # type: ignore[arg-type]
        assert fault.fired == 4
        waits.append(noted.seconds)
    for number, delays in enumerate(zip(*waits, strict=True)):
        assert len(set(delays)) > 10
        assert all(0.5 * 2**number <= delay <= 1.5 * 2**number for delay in delays)


@pytest.mark.parametrize("asked", ["1", "99999"])
def test_e2_retry_after_is_honoured_up_to_a_minute(memory: MemoryRegistry, asked: str) -> None:
    noted = Waits()
    fault = Fault("HEAD", answer=Answer(429, {"Retry-After": asked}))
    with FaultServer(memory, fault) as server:
        Registry(QUICK, noted).push_blob(at(server), MemoryBlob(DATA))  # type: ignore[arg-type]
    assert fault.fired == 1
    assert noted.seconds == [min(float(asked), 60)]


@pytest.mark.parametrize("day", ["Mon, 01 Jan " + "9" * 20, "Mon, 01 Jan 2026 00:00:00 +" + "9" * 20, "soon"])
def test_e2_a_retry_after_that_is_no_time_is_as_none(memory: MemoryRegistry, day: str) -> None:
    noted = Waits()
    with FaultServer(memory, fault := Fault("HEAD", answer=Answer(429, {"Retry-After": f"{day} GMT"}))) as server:
        Registry(QUICK, noted).push_blob(at(server), MemoryBlob(DATA))  # type: ignore[arg-type]
    assert fault.fired == 1
    assert len(noted.seconds) == 1
    assert noted.seconds[0] < 1


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 415])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_e3_permanent_answers_are_not_asked_again(memory: MemoryRegistry, status: int, method: str) -> None:
    fault = Fault(method, times=99, answer=Answer(status, body=b'{"errors":[{"code":"DENIED","message":"no\x1b[2J"}]}'))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteError, match=str(status)) as caught:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert fault.fired == 1
    assert "\x1b" not in caught.value.message
    assert not memory.sessions


@pytest.mark.parametrize("attempts", [1, 3])
def test_e1_a_refused_connection_ends_after_the_attempts(free_port: int, attempts: int) -> None:
    """Judged by the kernel's record of the connections that were tried."""
    program = (
        "import sys\n"
        "from mlimg.runtime.errors import MlimgError\n"
        "from mlimg.runtime.oci import Access, Registry\n"
        "from mlimg.runtime.reference import ImageReference\n"
        "access = Access(backoff_seconds=0.01, attempts=int(sys.argv[2]))\n"
        "try: Registry(access).resolve(ImageReference.parse(sys.argv[1]))\n"
        "except MlimgError as error: print(error.status, error)\n"
    )
    command = ["strace", "-f", "-qq", "-e", "trace=connect", sys.executable, "-c", program]
    name = f"127.0.0.1:{free_port}/app:1"
    done = subprocess.run([*command, name, str(attempts)], capture_output=True, text=True, check=True)
    tried = [line for line in done.stderr.splitlines() if f"htons({free_port})" in line]
    assert len(tried) == attempts
    assert done.stdout.startswith("17 ")
    assert "refused" in done.stdout


def test_e1_a_name_that_does_not_resolve_ends_after_the_attempts() -> None:
    with pytest.raises(RemoteTemporaryError):
        Registry(QUICK).resolve(ImageReference.parse("registry.invalid/app:1"))


def test_e1_a_host_that_drops_every_packet_ends_after_the_attempts(memory: MemoryRegistry) -> None:
    access = replace(QUICK, connect_seconds=0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as hole, contextlib.ExitStack() as waiting:
        # Nobody accepts, so the queue is full with one connection: the kernel drops every further SYN.
        waiting.enter_context(socket.create_connection(hole.getsockname(), timeout=0.3))
        with pytest.raises(TimeoutError):
            socket.create_connection(hole.getsockname(), timeout=0.3)
        started = time.monotonic()
        with pytest.raises(RemoteTemporaryError, match="timed out"):
            Registry(access).resolve(ImageReference.parse(f"127.0.0.1:{hole.getsockname()[1]}/app:1"))
        assert QUICK.attempts * 0.3 <= time.monotonic() - started < QUICK.attempts * 0.3 + 2
    with FaultServer(memory) as server:  # the twin: a host that answers, with the same patience
        assert Registry(access).resolve(at(server)) is None


def test_e1_silence_ends_at_the_stall_timeout(memory: MemoryRegistry) -> None:
    access = Access(backoff_seconds=0.01, stall_seconds=0.1, attempts=2)
    fault = Fault("HEAD", times=99, delay_seconds=5)
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        Registry(access).has_blob(at(server), Digest.of(DATA))
    assert fault.fired == 2


@pytest.mark.parametrize("at_byte", [0, 1, len(DATA) // 2, len(DATA) - 1])
def test_e5_a_cut_upload_starts_over(memory: MemoryRegistry, at_byte: int) -> None:
    fault = Fault("PUT", "uploads", cut_request_at=at_byte)
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert fault.fired == 1
    assert memory.blobs[("team/app", Digest.of(DATA).text)] == DATA
    assert not memory.sessions


def test_e6_a_commit_whose_answer_was_lost_is_not_sent_again(memory: MemoryRegistry) -> None:
    fault = Fault("PUT", "uploads", lose_answer=True)
    with FaultServer(memory, fault) as server:
        pushed = Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert server.count("PUT") == 1
    assert fault.fired == 1
    assert pushed.how == "sent"


def test_e7_a_manifest_whose_answer_was_lost_is_stored(memory: MemoryRegistry) -> None:
    fault = Fault("PUT", "manifests", lose_answer=True)
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_manifest(at(server), b'{"schemaVersion":2}', OCI_MANIFEST)
    assert fault.fired == 1
    assert memory.manifests[("team/app", "1")] == (OCI_MANIFEST, b'{"schemaVersion":2}')


def test_e8_an_expired_session_is_opened_anew(memory: MemoryRegistry) -> None:
    gone = Answer(404, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
    fault = Fault("PUT", "uploads", answer=gone)
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert fault.fired == 1
    assert ("team/app", Digest.of(DATA).text) in memory.blobs


def test_a_registry_without_patch_gets_one_put(memory: MemoryRegistry) -> None:
    fault = Fault("PATCH", times=99, answer=Answer(416))
    with FaultServer(memory, fault) as server:
        pushed = Registry(QUICK).push_blob(at(server), OnItsWay(DATA))
    assert fault.fired == 1
    assert memory.blobs[("team/app", pushed.digest.text)] == DATA


def test_files_that_change_while_they_are_sent_leave_no_session(memory: MemoryRegistry) -> None:
    class Changing:
        size_bytes = len(DATA)
        digest = Digest.of(DATA)

        @property
        def resume_key(self) -> None:
            return

        def chunks(self) -> Iterator[bytes]:
            yield DATA[:1000]
            raise ModelError("model.joblib changed while it was read")

    with FaultServer(memory) as server, pytest.raises(ModelError):
        Registry(QUICK).push_blob(at(server), Changing())
    assert not memory.blobs
    assert not memory.sessions


@pytest.mark.parametrize("content", [DATA[:-1], DATA + b"x"], ids=["short", "long"])
def test_a_blob_of_another_length_than_announced_is_not_committed(memory: MemoryRegistry, content: bytes) -> None:
    class Wrong:
        size_bytes = len(DATA)
        digest = Digest.of(DATA)

        @property
        def resume_key(self) -> None:
            return

        def chunks(self) -> Iterator[bytes]:
            yield content

    with FaultServer(memory) as server, pytest.raises(IntegrityError, match="announced"):
        Registry(QUICK).push_blob(at(server), Wrong())
    assert not memory.blobs


def test_e15_a_redirected_upload_takes_nothing_to_another_host(memory: MemoryRegistry) -> None:
    with FaultServer(MemoryRegistry()) as canary:
        fault = Fault("PUT", "uploads", answer=Answer(307, {"Location": f"http://{canary.host}/steal"}))
        with FaultServer(memory, fault) as server, pytest.raises(RemoteError):
            Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert fault.fired == 1
        assert not canary.requests


def test_e21_an_upload_session_at_what_is_no_url_is_refused(memory: MemoryRegistry) -> None:
    fault = Fault("POST", answer=Answer(202, {"Location": "http://[::1"}))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteError, match="no URL"):
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert fault.fired == 1


def test_e21_an_upload_session_on_another_host_is_refused(memory: MemoryRegistry) -> None:
    with FaultServer(MemoryRegistry()) as canary:
        fault = Fault("POST", answer=Answer(202, {"Location": f"http://{canary.host}/v2/x/blobs/uploads/1"}))
        with FaultServer(memory, fault) as server, pytest.raises(RemoteError, match="not followed"):
            Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert fault.fired == 1
        assert not canary.requests


def test_a_tag_that_somebody_moves_meanwhile_is_a_conflict(memory: MemoryRegistry) -> None:
    other = b'{"schemaVersion":2,"layers":[]}'

    def moved(answer: Answer) -> Answer:
        memory.put_manifest("team/app", "1", other)
        return answer

    fault = Fault("PUT", "manifests/1", change=moved)
    with FaultServer(memory, fault) as server, pytest.raises(ConflictError):
        Registry(QUICK).push_manifest(at(server), b'{"schemaVersion":2}', OCI_MANIFEST)
    assert fault.fired == 1


def test_a_manifest_stored_with_other_bytes_is_noticed(memory: MemoryRegistry) -> None:
    fault = Fault("GET", "manifests", change=lambda answer: Answer(200, {}, b'{"schemaVersion":3}'))
    with FaultServer(memory, fault) as server, pytest.raises(IntegrityError):
        Registry(QUICK).push_manifest(at(server), b'{"schemaVersion":2}', OCI_MANIFEST)
    assert fault.fired == 1


def test_credentials_go_to_the_registry_in_a_basic_header(memory: MemoryRegistry) -> None:
    def guarded(request: object) -> Answer:
        headers = request.headers  # type: ignore[attr-defined]
        if headers.get("Authorization") == "Basic YWxpY2U6c2VjcmV0":
            return memory(request)  # type: ignore[arg-type]
        return Answer(401, {"WWW-Authenticate": 'Basic realm="r"'})

    access: Callable[[Credentials | None], Access] = lambda known: Access(credentials=lambda _host: known)  # noqa: E731
    with FaultServer(guarded) as server:
        Registry(access(Credentials("alice", "secret"))).push_blob(at(server), MemoryBlob(DATA))
        for wrong in (Credentials("alice", "wrong"), None):
            with pytest.raises(CredentialsError):
                Registry(access(wrong)).push_blob(at(server), MemoryBlob(DATA))
    assert "secret" not in repr(Credentials("alice", "secret", "secret"))
