"""The server that fails on purpose: each of its faults does what it says, and is counted."""

import gzip
import http.client
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.faults import Answer, Fault, FaultServer, Request, flip, longer, with_headers, zipped

DATA = bytes(range(256)) * 400
SIZE = len(DATA)


def backend(request: Request) -> Answer:
    return Answer(200, {"X-Seen": str(len(request.body))}, DATA)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(backend) as server:
        yield server


class Got(Exception):  # noqa: N818 (what came before the connection ended)
    """An answer that did not come to its end."""


def ask(server: FaultServer, body: bytes | None = None, seconds: float = 5) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, timeout=seconds)
    try:
        connection.request("GET" if body is None else "PUT", "/x", body)
        answer = connection.getresponse()
        got = b""
        try:
            while piece := answer.read1(4096):
                got += piece
            if len(got) < int(answer.headers["Content-Length"]):
                raise http.client.IncompleteRead(got)
        except (OSError, http.client.HTTPException) as error:
            raise Got(got, error) from error
        return answer.status, {name.lower(): text for name, text in answer.getheaders()}, got
    finally:
        connection.close()


def test_without_a_fault_nothing_is_changed(server: FaultServer) -> None:
    assert ask(server, b"12345") == (200, {"x-seen": "5", "content-length": str(SIZE)}, DATA)


@pytest.mark.parametrize("at", [0, 1, SIZE // 2, SIZE - 1])
@pytest.mark.parametrize("reset", [False, True])
def test_an_answer_is_cut_or_reset_at_a_byte(server: FaultServer, at: int, reset: bool) -> None:
    fault = Fault(reset_at=at) if reset else Fault(cut_at=at)
    server.faults.append(fault)
    with pytest.raises((Got, ConnectionResetError)) as caught:
        ask(server)
    got, ended = caught.value.args if isinstance(caught.value, Got) else (b"", caught.value)
    assert isinstance(ended, ConnectionResetError) == reset
    if reset:
        assert len(got) <= at  # a reset may overtake what was sent
    else:
        assert got == DATA[:at]
    assert fault.fired == 1
    assert ask(server)[2] == DATA


def test_an_answer_falls_silent_at_a_byte(server: FaultServer) -> None:
    fault = Fault(stall_at=1000)
    server.faults.append(fault)
    with pytest.raises(Got) as caught:
        ask(server, seconds=0.3)
    assert caught.value.args[0] == DATA[:1000]
    assert isinstance(caught.value.args[1], TimeoutError)
    assert fault.fired == 1


@pytest.mark.parametrize("fault", [Fault(delay_seconds=0.3), Fault(bytes_per_second=SIZE / 0.3)])
def test_an_answer_is_late_or_slow(server: FaultServer, fault: Fault) -> None:
    started = time.monotonic()
    ask(server)
    assert time.monotonic() - started < 0.3
    server.faults.append(fault)
    started = time.monotonic()
    assert ask(server)[2] == DATA
    assert time.monotonic() - started >= 0.25
    assert fault.fired == 1


@pytest.mark.parametrize("reset", [False, True])
def test_a_request_is_cut_at_a_byte(server: FaultServer, reset: bool) -> None:
    fault = Fault("PUT", cut_request_at=1000, reset_request=reset, pass_cut=True)
    server.faults.append(fault)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(server, bytes(5000))
    assert fault.fired == 1
    assert [len(request.body) for request in server.requests] == [1000]
    assert ask(server, bytes(5000))[1]["x-seen"] == "5000"


def test_an_answer_is_lost_after_the_work_is_done() -> None:
    done: list[Request] = []

    def work(request: Request) -> Answer:
        done.append(request)
        return Answer(201)

    fault = Fault("PUT", lose_answer=True)
    with FaultServer(work, fault) as server:
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(server, b"x")
        assert (fault.fired, len(done)) == (1, 1)


@pytest.mark.parametrize(
    ("change", "body"),
    [
        (flip, b"\x01" + DATA[1:]),
        (lambda answer: flip(answer, SIZE - 1), DATA[:-1] + b"\xfe"),
        (longer, DATA + b"x"),
        (lambda answer: longer(answer, bytes(5)), DATA + bytes(5)),
        (with_headers(X_Long="n" * 30_000), DATA),
        (with_headers(Docker_Content_Digest="sha256:" + "0" * 64), DATA),
        (lambda _: Answer(200, {}, b"{[}"), b"{[}"),
    ],
    ids=["flip", "flip the last", "longer", "longer by five", "header of 30 kB", "wrong digest", "garbage"],
)
def test_an_answer_is_changed(server: FaultServer, change: Callable[[Answer], Answer], body: bytes) -> None:
    fault = Fault(change=change)
    server.faults.append(fault)
    _, headers, got = ask(server)
    assert got == body
    assert headers["content-length"] == str(len(body))
    wanted = {name.lower(): text for name, text in change(Answer(200, {}, DATA)).headers.items()}
    assert wanted.items() <= headers.items()
    assert fault.fired == 1
    assert ask(server)[2] == DATA


def test_an_answer_is_compressed(server: FaultServer) -> None:
    server.faults.append(fault := Fault(change=zipped))
    _, headers, got = ask(server)
    assert (headers["content-encoding"], gzip.decompress(got)) == ("gzip", DATA)
    assert fault.fired == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503),
        Answer(429, {"Retry-After": "7"}),
        Answer(401, {"WWW-Authenticate": "Basic realm=r"}),
        Answer(307, {"Location": "http://elsewhere.example/"}),
    ],
    ids=lambda answer: str(answer.status),
)
def test_the_nth_requests_are_answered_otherwise(server: FaultServer, answer: Answer) -> None:
    fault = Fault(skip=1, times=2, answer=answer)
    server.faults.append(fault)
    asked = [ask(server) for _ in range(4)]
    assert [status for status, _, _ in asked] == [200, answer.status, answer.status, 200]
    assert {name.lower(): text for name, text in answer.headers.items()}.items() <= asked[1][1].items()
    assert fault.fired == 2


def test_a_body_in_chunks_is_taken_whole(server: FaultServer) -> None:
    connection = http.client.HTTPConnection(server.host, timeout=5)
    connection.request("PUT", "/x", iter([b"one", b"", b"two"]), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().headers["X-Seen"] == "6"
    connection.close()
