"""Uploads that are cut go on where the registry says, in one process and in the next. Bars: E4, E5, E6, E8, E9.

What was sent is judged by the bytes that reached the server.
"""

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path

import pytest

from mlimg.runtime.descriptor import Blob, MemoryBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    CredentialsError,
    IntegrityError,
    LocalIOError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
)
from mlimg.runtime.oci import Access, Credentials, Journal, Registry, push_blobs
from mlimg.runtime.oci import strategy as strategies
from mlimg.runtime.oci.journal import Entry
from mlimg.runtime.reference import ImageReference
from tests.support.blobs import OnItsWay
from tests.support.faults import Answer, Backend, Fault, FaultServer, Request
from tests.support.registry import MemoryRegistry

CHUNK = 100_000
DATA = random.Random(1).randbytes(4 * CHUNK)
DIGEST = Digest.of(DATA)
KEY = ("team/app", DIGEST.text)
QUICK = Access(backoff_seconds=0.01, stall_seconds=1)
POINTS = [0, 1, 50, 99, 100]  # % of a body


class UnhashedBlob(OnItsWay):
    """A blob whose digest nobody knows, though it is known to be the same in every process."""

    resume_key = "unhashed:1"

    def __init__(self) -> None:
        super().__init__(DATA, piece_bytes=70_001)  # pieces that end where no chunk does


@pytest.fixture(params=[lambda: MemoryBlob(DATA), UnhashedBlob], ids=["known digest", "hashed on its way"])
def blob(request: pytest.FixtureRequest) -> Blob:
    made: Blob = request.param()
    return made


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(strategies, "SMALLEST_CHUNK_BYTES", CHUNK // 16)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "uploads")


def at(server: FaultServer) -> ImageReference:
    return ImageReference.parse(f"{server.host}/team/app:1")


def received(server: FaultServer) -> int:
    return sum(len(request.body) for request in server.matching("PATCH|PUT", "uploads"))


def test_a_large_blob_goes_in_chunks(blob: Blob, journal: Journal, tmp_path: Path) -> None:
    memory, moved = MemoryRegistry(), list[int]()
    with FaultServer(memory) as server:
        pushed = Registry(QUICK).push_blob(at(server), blob, on_bytes=moved.append, journal=journal)
        assert [len(request.body) for request in server.matching("PATCH")] == [CHUNK] * 4
        assert received(server) == pushed.sent_bytes == sum(moved) == len(DATA)
    assert pushed.digest == DIGEST
    assert memory.blobs[KEY] == DATA
    assert not list((tmp_path / "uploads").iterdir())


@pytest.mark.parametrize("reset", [False, True], ids=["cut", "RST"])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("percent", POINTS)
def test_e5_a_cut_chunk_is_all_that_is_sent_again(blob: Blob, percent: int, number: int, reset: bool) -> None:
    memory, moved = MemoryRegistry(), list[int]()
    fault = Fault("PATCH", skip=number, cut_request_at=CHUNK * percent // 100, reset_request=reset, pass_cut=True)
    with FaultServer(memory, fault) as server:
        pushed = Registry(QUICK).push_blob(at(server), blob, on_bytes=moved.append)
        # What was cut is what the server has; a single byte it cannot tell from none.
        assert len(DATA) <= received(server) <= len(DATA) + 1
    assert fault.fired == 1
    assert pushed.digest == DIGEST
    assert sum(moved) == len(DATA)
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("percent", POINTS)
def test_e5_a_registry_that_drops_what_was_cut_is_sent_the_chunk_again(percent: int, number: int) -> None:
    memory = MemoryRegistry()
    fault = Fault("PATCH", skip=number, cut_request_at=CHUNK * percent // 100)
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert received(server) == len(DATA) + CHUNK * percent // 100
    assert fault.fired == 1
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("percent", [0, 1, 50, 99])
def test_e5_a_registry_that_loses_the_session_is_sent_the_blob_once_more(blob: Blob, percent: int, number: int) -> None:
    memory = MemoryRegistry(loses_cut=True)
    fault = Fault("PATCH", skip=number, cut_request_at=CHUNK * percent // 100, pass_cut=True)
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_blob(at(server), blob)
        assert received(server) <= 2 * len(DATA)
    assert fault.fired == 1
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("percent", POINTS)
def test_e5_a_cut_stream_goes_on_where_the_registry_kept_it(
    monkeypatch: pytest.MonkeyPatch, percent: int, kept: bool
) -> None:
    monkeypatch.setattr(strategies, "CHUNK_BYTES", len(DATA))
    memory = MemoryRegistry(loses_cut=not kept)
    fault = Fault("PUT", "uploads", cut_request_at=len(DATA) * percent // 100, pass_cut=True)
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert received(server) <= (len(DATA) + 1 if kept else 2 * len(DATA))
    assert fault.fired == 1
    assert memory.blobs[KEY] == DATA


def test_e5_an_upload_that_advances_is_not_given_up_however_often_it_is_cut() -> None:
    memory = MemoryRegistry()
    fault = Fault("PATCH", times=99, cut_request_at=CHUNK // 8, pass_cut=True)
    with FaultServer(memory, fault) as server:
        Registry(Access(backoff_seconds=0, attempts=2)).push_blob(at(server), MemoryBlob(DATA))
    assert fault.fired >= len(DATA) // (CHUNK // 8)
    assert memory.blobs[KEY] == DATA


def test_e5_a_session_that_is_lost_each_time_is_given_up_in_the_end() -> None:
    memory = MemoryRegistry(loses_cut=True)
    fault = Fault("PATCH", times=99, cut_request_at=CHUNK // 2, pass_cut=True)
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert fault.fired == QUICK.attempts
    assert not memory.blobs


def test_e6_a_commit_whose_answer_was_lost_is_found(blob: Blob) -> None:
    memory = MemoryRegistry()
    fault = Fault("PUT", "uploads", lose_answer=True)
    with FaultServer(memory, fault) as server:
        pushed = Registry(QUICK).push_blob(at(server), blob)
        assert received(server) == len(DATA)
    assert fault.fired == 1
    assert (pushed.how, memory.blobs[KEY]) == ("sent", DATA)


def test_e8_a_session_that_expires_between_chunks_is_opened_anew(blob: Blob) -> None:
    memory, notes = MemoryRegistry(), list[str]()

    def expire(_: Answer) -> Answer:
        memory.sessions.clear()
        return Answer(404, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')

    fault = Fault("PATCH", skip=2, change=expire)
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_blob(at(server), blob, on_note=notes.append)
        assert received(server) == len(DATA) + 3 * CHUNK
        assert server.count("POST") == 2
    assert fault.fired == 1
    assert memory.blobs[KEY] == DATA


def gapped(memory: MemoryRegistry, extra: int) -> Backend:
    """A registry that takes chunks wherever they claim to be, and counts what is between, too."""

    def ask(request: Request) -> Answer:
        answer = memory(request)
        if request.method == "PATCH" and answer.status == 202:
            end = int(answer.headers["Range"].partition("-")[2]) + extra
            return Answer(202, {**answer.headers, "Range": f"0-{end}"})
        return answer

    return ask


def test_e9_a_registry_that_has_more_than_it_was_sent_gets_one_stream() -> None:
    memory = MemoryRegistry()
    with FaultServer(gapped(memory, 512)) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert (server.count("PATCH"), server.count("PUT")) == (1, 1)
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions
    with FaultServer(gapped(MemoryRegistry(), 0)) as server:  # the twin
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert server.count("PATCH") == 4


def test_e9_a_registry_that_kept_less_than_it_said_is_gone_on_with_from_there() -> None:
    memory = MemoryRegistry()

    def forget(answer: Answer) -> Answer:
        (session,) = memory.sessions
        memory.sessions[session] = memory.sessions[session][:-5000]
        return Answer(202, {**answer.headers, "Range": f"0-{len(memory.sessions[session]) - 1}"})

    fault = Fault("PATCH", skip=1, change=forget)
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_blob(at(server), UnhashedBlob())
        assert received(server) == len(DATA) + 5000
    assert fault.fired == 1
    assert memory.blobs[KEY] == DATA


@pytest.mark.parametrize(("offset", "kept"), [(2 * CHUNK, True), (2 * CHUNK + 1, True), (3 * CHUNK + 1, False)])
def test_e9_an_offset_beyond_what_was_sent_starts_anew(journal: Journal, offset: int, kept: bool) -> None:
    """The third chunk was cut: the registry has it, a part of it, or none; it cannot have more."""
    memory, notes = MemoryRegistry(), list[str]()
    cut = Fault("PATCH", skip=2, times=99, cut_request_at=0)
    with FaultServer(memory, cut) as server, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), journal=journal)
    assert cut.fired == QUICK.attempts
    (session,) = memory.sessions
    memory.sessions[session] = (DATA + DATA)[:offset]
    with moved_to(memory, server.host) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), journal=journal, on_note=notes.append)
        assert received(server) == (len(DATA) - offset if kept else len(DATA))
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions


def moved_to(memory: Backend, host: str, *faults: Fault) -> FaultServer:
    """The same server once more, at the address it had."""
    return FaultServer(memory, *faults, port=int(host.rpartition(":")[2]))


def test_the_next_run_goes_on_where_one_failed(journal: Journal, blob: Blob, tmp_path: Path) -> None:
    memory, notes, moved = MemoryRegistry(), list[str](), list[int]()
    fault = Fault("PATCH", skip=3, times=99, answer=Answer(503))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(server), copy(blob), journal=journal)
    assert len(memory.sessions) == 1
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "uploads").iterdir()] == [0o600]
    with moved_to(memory, server.host) as server:
        pushed = Registry(QUICK).push_blob(
            at(server), blob, journal=journal, on_note=notes.append, on_bytes=moved.append
        )
        assert received(server) == pushed.sent_bytes == sum(moved) == CHUNK
    assert pushed.digest == DIGEST
    assert memory.blobs[KEY] == DATA
    assert not list((tmp_path / "uploads").iterdir())
    assert len(notes) == 1
    assert "goes on" in notes[0]


def test_what_can_be_mounted_now_is_not_gone_on_with_and_the_rest_is(journal: Journal) -> None:
    memory, notes = MemoryRegistry(), list[str]()
    fault = Fault("PATCH", skip=3, times=99, answer=Answer(503))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), journal=journal, mount_from=["team/models"])
    with moved_to(memory, server.host) as server:
        registry = Registry(QUICK)
        pushed = registry.push_blob(
            at(server), MemoryBlob(DATA), journal=journal, mount_from=["team/none", "team/models"], on_note=notes.append
        )
        assert (pushed.how, received(server)) == ("sent", CHUNK)
        assert not memory.sessions  # those that the repositories opened instead of mounting are cancelled
        memory.blobs = {("team/models", DIGEST.text): DATA}
        pushed = registry.push_blob(at(server), MemoryBlob(DATA), journal=journal, mount_from=["team/models"])
        assert (pushed.how, pushed.sent_bytes) == ("mounted", 0)
    assert len(notes) == 1


def test_a_registry_that_is_away_does_not_end_what_can_be_taken_up(journal: Journal) -> None:
    memory = MemoryRegistry()
    cut = Fault("PATCH", skip=3, times=99, answer=Answer(503))
    with FaultServer(memory, cut) as first, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(first), MemoryBlob(DATA), journal=journal)
    for method in ("HEAD", "GET", "POST"):
        away = Fault(method, times=99, answer=Answer(503))
        with moved_to(memory, first.host, away) as server, pytest.raises(RemoteTemporaryError):
            Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), journal=journal, mount_from=["team/models"])
        assert away.fired == QUICK.attempts
        assert len(memory.sessions) == 1
    with moved_to(memory, first.host) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), journal=journal)
        assert received(server) == CHUNK
    assert not memory.sessions


def test_without_a_journal_nothing_is_left_in_the_registry() -> None:
    memory = MemoryRegistry()
    fault = Fault("PATCH", skip=3, times=99, answer=Answer(503))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert not memory.sessions


@pytest.mark.parametrize("answer", [Answer(404), Answer(405), Answer(204, {"Range": "0-0"}), Answer(204)])
def test_e8_a_session_that_the_next_run_does_not_find_is_said_and_sent_again(journal: Journal, answer: Answer) -> None:
    memory, notes = MemoryRegistry(), list[str]()
    fault = Fault("PATCH", skip=3, times=99, answer=Answer(503))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), journal=journal)
    lost = Fault("GET", "uploads", answer=answer)
    with moved_to(memory, server.host, lost) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), journal=journal, on_note=notes.append)
        assert received(server) == len(DATA)
    assert lost.fired == 1
    assert memory.blobs[KEY] == DATA


@pytest.mark.parametrize("named", ["manifests/1", f"blobs/{DIGEST}", "blobs/uploads/s0"])
def test_what_a_journal_names_is_not_deleted_unless_it_is_an_upload(journal: Journal, named: str) -> None:
    """A journal may come with somebody's project: it sends nobody's credentials to remove an image."""
    memory = MemoryRegistry(sessions={"s0": DATA + b"more than was sent"})
    memory.put("team/other", DATA)
    memory.put_manifest("team/other", "1", b"{}")
    with FaultServer(memory) as server:
        location = f"http://{server.host}/v2/team/other/{named}"
        with journal.hold(server.host, "team/app", DIGEST.text) as slot:
            assert slot is not None
            slot.write(Entry(location, CHUNK))
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA), journal=journal)
        assert server.count("GET", named) == 1
        assert server.count("DELETE") == (1 if "uploads" in named else 0)
    assert memory.blobs[KEY] == DATA


def test_what_an_earlier_run_sent_of_other_bytes_is_sent_anew(journal: Journal) -> None:
    """A resume key that lied: the registry's refusal of the digest is not the end."""
    memory, notes = MemoryRegistry(), list[str]()
    fault = Fault("PATCH", skip=3, times=99, answer=Answer(503))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        Registry(QUICK).push_blob(at(server), UnhashedBlob(), journal=journal)
    (session,) = memory.sessions
    memory.sessions[session] = b"x" + memory.sessions[session][1:]
    with moved_to(memory, server.host) as server:
        pushed = Registry(QUICK).push_blob(at(server), UnhashedBlob(), journal=journal, on_note=notes.append)
        assert received(server) == CHUNK + len(DATA)
    assert pushed.digest == DIGEST
    assert list(memory.blobs) == [KEY]
    assert "not that layer" in notes[-1]


@pytest.mark.parametrize("error", [ModelError("changed"), IntegrityError("longer")])
def test_a_model_that_changed_is_not_left_to_the_next_run(journal: Journal, tmp_path: Path, error: Exception) -> None:
    class Changing(UnhashedBlob):
        def chunks(self) -> Iterator[bytes]:
            yield DATA[: 3 * CHUNK]
            raise error

    memory = MemoryRegistry()
    with FaultServer(memory) as server, pytest.raises(type(error)):
        Registry(QUICK).push_blob(at(server), Changing(), journal=journal)
    assert not memory.sessions
    assert not list((tmp_path / "uploads").iterdir())


PUSH = """
import sys
from pathlib import Path
from mlimg.runtime.oci import Access, Journal, strategy, push_blobs
from mlimg.runtime.reference import ImageReference
from tests.unit.runtime.oci.test_push_resume import CHUNK, QUICK, UnhashedBlob
strategy.CHUNK_BYTES = CHUNK
push_blobs(QUICK, ImageReference.parse(sys.argv[1]), [UnhashedBlob()], journal=Journal(Path(sys.argv[2])))
"""


@pytest.mark.parametrize("number", range(4))
def test_e5_a_killed_process_is_gone_on_with(tmp_path: Path, number: int) -> None:
    memory = MemoryRegistry()
    stalled = Fault("PATCH", skip=number, delay_seconds=60, answer=Answer(503))
    with FaultServer(memory, stalled) as server:
        with subprocess.Popen([sys.executable, "-c", PUSH, str(at(server)), str(tmp_path)]) as process:
            deadline = time.monotonic() + 30
            while server.count("PATCH") <= number and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        before = received(server)
        assert before == (number + 1) * CHUNK
        notes: list[str] = []
        (pushed,) = push_blobs(QUICK, at(server), [UnhashedBlob()], journal=Journal(tmp_path), on_note=notes.append)
        assert received(server) - before == len(DATA) - number * CHUNK
    assert stalled.fired == 1
    assert len(notes) == (1 if number else 0)
    assert memory.blobs[KEY] == DATA
    assert pushed.digest == DIGEST
    assert not memory.sessions


class Guard:
    """A registry whose first token is good for a number of requests, and every token for a time."""

    def __init__(self, memory: MemoryRegistry, *, uses: int = 10**9, expires_in: int | None = None) -> None:
        self.memory = memory
        self.uses = uses
        self.expires_in = expires_in
        self.tokens = 0
        self.left = 0
        self.expires_at = 0.0
        self.refusals = 0

    def __call__(self, request: Request) -> Answer:
        if request.path.startswith("/token"):
            self.tokens += 1
            self.left = self.uses if self.tokens == 1 else 10**9
            self.expires_at = time.monotonic() + (self.expires_in or 1e9)
            seconds = f',"expires_in":{self.expires_in}' if self.expires_in else ""
            return Answer(200, body=f'{{"token":"t{self.tokens}"{seconds}}}'.encode())
        good = request.headers.get("Authorization") == f"Bearer t{self.tokens}"
        if not good or not self.left or time.monotonic() > self.expires_at:
            self.refusals += 1
            realm = f"http://{request.headers['Host']}/token"
            return Answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'})
        self.left -= 1
        return self.memory(request)


@pytest.mark.parametrize("uses", range(2, 6))
def test_e4_a_token_that_ends_between_chunks_is_renewed_once(blob: Blob, uses: int) -> None:
    memory = MemoryRegistry()
    guard = Guard(memory, uses=uses)
    access = Access(credentials=lambda _: Credentials("alice", "secret"), backoff_seconds=0.01)
    with FaultServer(guard) as server:
        Registry(access).push_blob(at(server), blob)
        # When the token is at its end as a chunk comes, this one is sent again, and no other.
        assert received(server) in {len(DATA), len(DATA) + CHUNK}
    assert (guard.tokens, guard.refusals) == (2, 2)
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions


def test_e4_credentials_that_are_refused_for_good_are_not_asked_for_ever() -> None:
    memory = MemoryRegistry()
    guard = Guard(memory)
    access = Access(credentials=lambda _: Credentials("alice", "secret"), backoff_seconds=0.01)
    challenge = 'Bearer realm="http://{}/token",service="s"'
    with FaultServer(guard) as server:
        fault = Fault("PATCH", times=99, answer=Answer(401, {"WWW-Authenticate": challenge.format(server.host)}))
        server.faults.append(fault)
        with pytest.raises(CredentialsError):
            Registry(access).push_blob(at(server), MemoryBlob(DATA))
    assert fault.fired == 2


def test_e4_a_token_that_is_about_to_end_is_renewed_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"ahead": 0.0}
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + clock["ahead"])
    memory = MemoryRegistry()
    guard = Guard(memory, expires_in=300)
    access = Access(credentials=lambda _: Credentials("alice", "secret"), backoff_seconds=0.01)

    def later(answer: Answer) -> Answer:
        clock["ahead"] += 280  # of 300 s
        return answer

    slow = Fault("PATCH", skip=1, change=later)
    with FaultServer(guard, slow) as server:
        Registry(access).push_blob(at(server), MemoryBlob(DATA))
        assert received(server) == len(DATA)
    assert slow.fired == 1
    assert (guard.tokens, guard.refusals) == (2, 1)  # the first request has none
    assert memory.blobs[KEY] == DATA


def refusing(memory: MemoryRegistry, larger_than: int, method: str, status: int) -> Backend:
    def ask(request: Request) -> Answer:
        if request.method == method and len(request.body) > larger_than:
            return Answer(status)
        return memory(request)

    return ask


@pytest.mark.parametrize("status", [400, 404, 405, 413, 416, 501])
def test_a_registry_that_refuses_chunks_gets_one_stream(blob: Blob, status: int) -> None:
    memory = MemoryRegistry()
    with FaultServer(refusing(memory, 0, "PATCH", status)) as server:
        registry = Registry(QUICK)
        assert registry.push_blob(at(server), blob).digest == DIGEST
        refused = server.count("PATCH")
        assert refused == (3 if status == 413 else 1)  # smaller chunks may do where one was too large
        memory.blobs.clear()
        Registry(QUICK).push_blob(at(server), blob)
        assert server.count("PATCH") == refused  # remembered
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions


def test_chunks_that_are_too_large_become_smaller(blob: Blob) -> None:
    memory = MemoryRegistry()
    with FaultServer(refusing(memory, CHUNK // 4, "PATCH", 413)) as server:
        Registry(QUICK).push_blob(at(server), blob)
        assert [len(r.body) for r in server.matching("PATCH")] == [CHUNK] + [CHUNK // 4] * 16
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions


def test_a_stream_that_is_too_large_becomes_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "CHUNK_BYTES", len(DATA))
    memory = MemoryRegistry()
    with FaultServer(refusing(memory, len(DATA) // 2, "PUT", 413)) as server:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
        assert [len(r.body) for r in server.matching("PATCH")] == [len(DATA) // 4] * 4
    assert memory.blobs[KEY] == DATA
    assert not memory.sessions


def test_a_registry_that_takes_neither_is_told_so() -> None:
    memory = MemoryRegistry()

    def ask(request: Request) -> Answer:
        return Answer(413) if request.body else memory(request)

    with FaultServer(ask) as server, pytest.raises(RemoteError, match="413") as caught:
        Registry(QUICK).push_blob(at(server), MemoryBlob(DATA))
    assert "limits the size" in caught.value.hint
    assert not memory.sessions


@pytest.mark.parametrize("least", [1, CHUNK, CHUNK + 1, 3 * CHUNK, 10**12])
def test_the_smallest_chunk_that_a_registry_asks_for_is_honoured(least: int) -> None:
    memory = MemoryRegistry()
    fault = Fault("POST", change=lambda a: Answer(a.status, {**a.headers, "OCI-Chunk-Min-Length": str(least)}))
    with FaultServer(memory, fault) as server:
        Registry(QUICK).push_blob(at(server), UnhashedBlob())
        *chunks, _last = [len(request.body) for request in server.matching("PATCH")]
    assert fault.fired == 1
    assert all(size >= least for size in chunks)
    assert memory.blobs[KEY] == DATA


def test_a_registry_that_tells_neither_place_nor_range_is_taken_at_its_status(blob: Blob) -> None:
    memory = MemoryRegistry()
    silent = Fault("PATCH", times=99, change=lambda answer: Answer(answer.status))
    with FaultServer(memory, silent) as server:
        Registry(QUICK).push_blob(at(server), blob)
    assert silent.fired == 4
    assert memory.blobs[KEY] == DATA


@pytest.mark.parametrize("position", [0, 150_000])
def test_a_file_that_cannot_be_read_is_no_failure_of_the_registry(journal: Journal, position: int) -> None:
    class Unreadable(UnhashedBlob):
        def chunks(self) -> Iterator[bytes]:
            yield DATA[:position]
            raise OSError(5, "Input/output error")

    memory = MemoryRegistry()
    with FaultServer(memory) as server, pytest.raises(LocalIOError, match="Input/output error"):
        Registry(QUICK).push_blob(at(server), Unreadable(), journal=journal)
    with moved_to(memory, server.host) as server:  # the disk is well again
        Registry(QUICK).push_blob(at(server), UnhashedBlob(), journal=journal)
        assert received(server) == len(DATA) - position
    assert memory.blobs[KEY] == DATA


def test_the_largest_blobs_go_first_four_at_once_and_results_keep_their_order() -> None:
    blobs = [MemoryBlob(bytes([n]) * n * 1000) for n in (3, 1, 9, 5, 2, 8)]
    asked: list[str] = []
    four = threading.Barrier(4)
    memory = MemoryRegistry()

    def ask(request: Request) -> Answer:
        if request.method == "HEAD":
            asked.append(request.path.rpartition("/")[2])
            if len(asked) <= 4:
                four.wait(10)  # broken unless there are four
        return memory(request)

    with FaultServer(ask) as server:
        pushed = push_blobs(QUICK, at(server), blobs)
    assert [blob.digest for blob in pushed] == [blob.digest for blob in blobs]
    assert set(asked[:4]) == {blobs[index].digest.text for index in (0, 2, 3, 5)}


def test_e10_a_blob_that_a_registry_only_claims_to_have_is_sent_when_asked_for(journal: Journal) -> None:
    memory = MemoryRegistry()
    lie: Callable[[Answer], Answer] = lambda _: Answer(200)  # noqa: E731
    lies = [Fault("HEAD", times=1, change=lie), Fault("HEAD", times=1, change=lie)]
    with FaultServer(memory, *lies) as server:
        registry = Registry(QUICK)
        assert registry.push_blob(at(server), MemoryBlob(DATA), journal=journal).how == "exists"
        assert not memory.blobs
        assert registry.push_blob(at(server), MemoryBlob(DATA), journal=journal, anew=True).how == "sent"
    assert lies[0].fired == 1
    assert memory.blobs[KEY] == DATA
