"""What one connection may do: real bytes through a real event loop, over a pair of sockets."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from mlimg.runtime.errors import SpecError
from mlimg.runtime.server import connection
from mlimg.runtime.server.connection import limited
from mlimg.runtime.server.settings import Limits

GET = b"GET /read HTTP/1.1\r\n"
POST = b"POST /read HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
EARLY = POST.replace(b"/read", b"/unread") + HOST
CHUNKED = POST + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = GET + HOST + b"\r\n"
LIMITS = Limits()


@dataclass
class Heard:
    """What the client was sent, and whether the server ended the connection."""

    text: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.text.split(b"HTTP/1.1 ")[1:]]


class App:
    """Reads the body under `/read`, answers without reading anywhere else; `bodies` are those that came whole."""

    def __init__(self, *answer_headers: tuple[bytes, bytes]) -> None:
        self.answer_headers = answer_headers
        self.bodies: list[bytes] = []
        self.disconnected = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while scope["path"] == "/read":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected += 1
                return
            body += message["body"]
            if not message["more_body"]:
                self.bodies.append(body)
                break
        await self.go.wait()
        self.headers = list(scope["headers"])
        size = 5_000_000 if scope["path"] == "/large" else 2
        headers = [(b"content-length", b"%d" % size), *self.answer_headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"k" * size})


async def talk(app: App, parts: Sequence[bytes], limits: Limits = LIMITS, seconds: float = 0.1) -> Heard:
    """Send `parts`, one by one as the server reads them; listen until it closes or is silent for `seconds`."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    config = uvicorn.Config(app, http=limited(limits), log_config=None, lifespan="off")
    config.load()
    protocol = limited(limits)(config, ServerState(), {}, loop)
    await loop.connect_accepted_socket(lambda: protocol, theirs)
    heard = b""
    try:
        for part in parts:
            await loop.sock_sendall(ours, part)
            await asyncio.sleep(0.01)
        while True:
            received = await asyncio.wait_for(loop.sock_recv(ours, 65536), seconds)
            if not received:
                return Heard(heard, closed=True)
            heard += received
    except TimeoutError:
        return Heard(heard, closed=False)
    except (BrokenPipeError, ConnectionResetError):
        return Heard(heard, closed=True)
    finally:
        ours.close()
        await asyncio.sleep(0)
        protocol.transport.abort()
        await asyncio.sleep(0)


def ask(*parts: bytes, app: App | None = None, limits: Limits = LIMITS, seconds: float = 0.1) -> Heard:
    async def run() -> Heard:
        return await talk(app or App(), parts, limits, seconds)

    return asyncio.run(run())


# Wrong, and next to it the same with nothing wrong.
CORPUS = {
    "length and chunks": (
        POST + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"0\r\n\r\n",
    ),
    "chunks and length": (
        POST + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        POST + HOST + b"X-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "another coding": (
        POST + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + HOST + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
    ),
    "a coding that hides": (
        POST + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + HOST + b"Transfer-Encoding:  chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunks in 1.0": (
        b"POST /read HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /read HTTP/1.0\r\n" + HOST + b"Content-Length: 1\r\n\r\n0",
    ),
    "two lengths": (
        POST + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        POST + HOST + b"Content-Length: 2\r\nX-Length: 1\r\n\r\nab",
    ),
    "a length with a sign": (
        POST + HOST + b"Content-Length: +2\r\n\r\nab",
        POST + HOST + b"Content-Length: 2\r\n\r\nab",
    ),
    "a blank before the colon": (
        POST + HOST + b"Content-Length : 2\r\n\r\nab",
        POST + HOST + b"Content-Length:  2\r\n\r\nab",
    ),
    "a folded line": (GET + HOST + b"A: b\r\n c\r\n\r\n", GET + HOST + b"A: b c\r\n\r\n"),
    "lines that end in LF": (GET + b"Host: x\n\n", GET + b"Host: x\r\n\r\n"),
    "one line that ends in LF": (GET + HOST + b"A: b\nC: d\r\n\r\n", GET + HOST + b"A: b\r\nC: d\r\n\r\n"),
    "a NUL": (GET + HOST + b"A: \x00\r\n\r\n", GET + HOST + b"A: \xff\r\n\r\n"),
    "HTTP/0.9": (b"GET /read\r\n\r\n", b"GET /read HTTP/1.0\r\n\r\n"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", WHOLE),
    "HTTP/2 in its first line": (b"GET /read HTTP/2.0\r\n" + HOST + b"\r\n", WHOLE),
    "no host": (GET + b"\r\n", WHOLE),
    "two hosts": (GET + HOST + HOST + b"\r\n", WHOLE),
    "a proxy's request": (
        b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://x/read HTTP/1.1\r\n" + HOST + b"\r\n",
    ),
    "a path that is none": (b"GET \xff HTTP/1.1\r\n" + HOST + b"\r\n", b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n"),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00", b"\r\n" + WHOLE),
    "a chunk's size with a sign": (CHUNKED + b"-1\r\n", CHUNKED + b"1\r\na\r\n0\r\n\r\n"),
    "a chunk's size in C": (CHUNKED + b"0x1\r\na\r\n0\r\n\r\n", CHUNKED + b"01\r\na\r\n0\r\n\r\n"),
    "a chunk's size over 64 bits": (CHUNKED + b"f" * 17 + b"\r\n", CHUNKED + b"0" * 17 + b"\r\n\r\n"),
    "a chunk that is longer": (CHUNKED + b"1\r\nab\r\n0\r\n\r\n", CHUNKED + b"2\r\nab\r\n0\r\n\r\n"),
    "chunk lines that end in LF": (CHUNKED + b"1\na\n0\n\n", CHUNKED + b"1;a=b\r\na\r\n0\r\n\r\n"),
    "a length after the chunks": (
        CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n",
        CHUNKED + b"0\r\nX-Length: 3\r\n\r\n",
    ),
}


@pytest.mark.parametrize("case", CORPUS)
def test_h5_what_can_be_read_in_two_ways_is_400_and_the_end(case: str) -> None:
    wrong, _ = CORPUS[case]
    app = App()
    heard = ask(wrong, WHOLE, app=app)
    assert heard.statuses == [400]
    assert heard.closed
    assert not app.bodies  # nothing of it, nor what followed, was taken for a request
    assert b"connection: close" in heard.text


@pytest.mark.parametrize("case", CORPUS)
def test_h5_its_twin_is_answered_and_the_next_too(case: str) -> None:
    _, right = CORPUS[case]
    last = b"HTTP/1.0" in right
    heard = ask(right, *([] if last else [WHOLE]), seconds=0.05)
    assert heard.statuses == ([200] if last else [200, 200])


@pytest.mark.parametrize("case", CORPUS)
def test_h5_no_request_has_two_answers_however_its_bytes_come(case: str) -> None:
    wrong, _ = CORPUS[case]
    in_one, one_by_one = ask(wrong + WHOLE), ask(*(wrong[i : i + 7] for i in range(0, len(wrong), 7)), WHOLE)
    assert in_one.statuses == one_by_one.statuses == [400]


def test_h5_a_request_before_the_last_answer_is_not_read() -> None:
    app = App()
    heard = ask(WHOLE + WHOLE, app=app)
    assert (heard.statuses, heard.closed, len(app.bodies)) == ([200], True, 1)
    assert b"connection: close" in heard.text
    assert ask(WHOLE, WHOLE, app=app).statuses == [200, 200]


def test_h5_garbage_after_a_request_does_not_answer_it() -> None:
    assert ask(WHOLE + b"\x00").statuses == [200]
    assert ask(POST + HOST + b"Content-Length: 2\r\n\r\nabGARBAGE").statuses == [200]


def headers(size_bytes: int) -> bytes:
    """A request whose headers have this size."""
    start = GET + HOST + b"A: "
    return start + b"a" * (size_bytes - len(start)) + b"\r\n\r\n"


def test_h5_headers_have_a_size() -> None:
    assert ask(headers(200_000)).statuses == [431]
    assert ask(headers(70_000)[:-4], headers(70_000)[-4:]).statuses == [431]
    assert ask(headers(60_000)).statuses == [200]
    assert ask(headers(60_000)[:30_000], headers(60_000)[30_000:]).statuses == [200]


def test_h5_a_line_that_never_ends_is_not_kept() -> None:
    for endless in (GET + HOST + b"A: ", GET + HOST, b"GET /"):
        assert ask(endless, *([b"a" * 30_000] * 4)).statuses == [431]


def test_h5_headers_have_a_number() -> None:
    assert ask(GET + HOST + b"a: b\r\n" * 10_000 + b"\r\n").statuses == [431]
    assert ask(GET + HOST + b"a: b\r\n" * 256 + b"\r\n").statuses == [431]
    assert ask(GET + HOST + b"a: b\r\n" * 255 + b"\r\n").statuses == [200]


def test_h7_headers_have_a_time_however_they_drip() -> None:
    limits = replace(LIMITS, header_seconds=0.2)
    heard = ask(GET, *([b"a: b\r\n"] * 60), limits=limits, seconds=1)
    assert (heard.statuses, heard.closed) == ([408], True)
    assert ask(GET, HOST, b"\r\n", limits=limits).statuses == [200]


def test_h7_a_body_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_RATE_SECONDS", 0.2)
    head = POST + HOST + b"Content-Length: 3000\r\n\r\n"
    app = App()
    heard = ask(head, *([b"a"] * 60), app=app, seconds=1)
    assert (heard.statuses, heard.closed, app.disconnected) == ([408], True, 1)
    assert ask(head, *([b"a" * 50] * 60)).statuses == [200]  # 5 kB a second


def test_a_body_has_a_time_however_fast_it_comes() -> None:
    limits = replace(LIMITS, body_seconds=0.3)
    app = App()
    heard = ask(CHUNKED, *([b"2710\r\n" + b"a" * 10_000 + b"\r\n"] * 60), app=app, limits=limits, seconds=1)
    assert (heard.statuses, heard.closed, app.disconnected) == ([408], True, 1)
    assert b"the body took too long" in heard.text
    assert ask(CHUNKED, b"1\r\na\r\n" * 3, b"0\r\n\r\n", limits=limits).statuses == [200]


def test_a_connection_that_asks_nothing_is_closed() -> None:
    limits = replace(LIMITS, keep_alive_seconds=1)
    for parts in ([], [WHOLE], [b"\r\n"], [WHOLE, b"\r\n"]):
        heard = ask(*parts, limits=limits, seconds=3)
        assert (heard.statuses, heard.closed) == ([200] * parts.count(WHOLE), True)


def test_the_time_of_a_connection_that_asks_nothing_begins_with_each_answer_anew() -> None:
    async def run() -> float:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        limits = replace(LIMITS, keep_alive_seconds=1)
        config = uvicorn.Config(App(), log_config=None, lifespan="off")
        config.load()
        await loop.connect_accepted_socket(lambda: limited(limits)(config, ServerState(), {}, loop), theirs)
        for pause in (0.6, 0.0):
            await loop.sock_sendall(ours, WHOLE)
            assert b" 200 " in await loop.sock_recv(ours, 1000)
            last = loop.time()
            await asyncio.sleep(pause)
        assert await asyncio.wait_for(loop.sock_recv(ours, 1000), 10) == b""
        ours.close()
        return loop.time() - last

    assert asyncio.run(run()) >= 0.9


def test_a_connection_is_idle_when_the_body_is_there_that_was_answered_before() -> None:
    heard = ask(
        EARLY + b"Content-Length: 10\r\n\r\n", b"a" * 10, limits=replace(LIMITS, keep_alive_seconds=1), seconds=5
    )
    assert (heard.statuses, heard.closed) == ([200], True)


def test_who_waits_to_be_told_to_go_on_and_is_wrong_is_told_that_alone() -> None:
    app = App()
    heard = ask(CHUNKED.replace(HOST, HOST + b"Expect: 100-continue\r\n") + b"ZZZ\r\n", app=app)
    assert (heard.statuses, heard.closed, app.disconnected) == ([400], True, 1)
    assert ask(CHUNKED.replace(HOST, HOST + b"Expect: 100-continue\r\n"), b"0\r\n\r\n").statuses == [100, 200]


def test_an_answer_goes_out_whole_with_or_without_a_body() -> None:
    head, _, body = ask(GET.replace(b"/read", b"/large") + HOST + b"\r\n", seconds=1).text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b"k" * 5_000_000
    heard = ask(WHOLE.replace(b"GET", b"HEAD"), WHOLE).text.split(b"\r\n\r\n")
    assert [part[:12] for part in heard] == [b"HTTP/1.1 200", b"HTTP/1.1 200", b"kk"]


class Recorder(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None: ...


@pytest.mark.parametrize(("path", "writes"), [(b"/small", 1), (b"/large", 2)])
def test_a_small_answer_is_one_write(path: bytes, writes: int) -> None:
    async def run() -> list[bytes]:
        transport = Recorder()
        config = uvicorn.Config(App(), log_config=None, lifespan="off")
        config.load()
        protocol = limited(LIMITS)(config, ServerState(), {}, asyncio.get_running_loop())
        protocol.connection_made(transport)
        protocol.data_received(WHOLE.replace(b"/read", path))
        await asyncio.sleep(0.01)
        protocol.connection_lost(OSError())
        return transport.written

    written = asyncio.run(run())
    assert len(written) == writes
    assert b"".join(written).startswith(b"HTTP/1.1 200 OK\r\ncontent-length: ")


def test_no_header_of_an_answer_is_two() -> None:
    heard = [ask(WHOLE, app=App((b"x-name", value))) for value in (b"a b: c", b"a\r\nb: c", b"a\nb: c")]
    assert [(each.statuses, each.closed) for each in heard] == [([200], False), ([], True), ([], True)]


def test_h4_a_body_has_so_many_chunks() -> None:
    limits = replace(LIMITS, chunks=10)
    assert ask(CHUNKED, b"1\r\na\r\n" * 10, b"0\r\n\r\n", limits=limits).statuses == [413]  # the last is one, too
    assert ask(CHUNKED, b"1\r\na\r\n" * 9, b"0\r\n\r\n", limits=limits).statuses == [200]


def test_h4_what_stands_beside_the_chunks_has_a_size() -> None:
    assert ask(CHUNKED, b"1;", *([b"a" * 40_000] * 3)).statuses == [400]
    assert ask(CHUNKED, b"0\r\n", *([b"a: b\r\n" * 7_000] * 3)).statuses == [400]
    assert ask(CHUNKED, b"1;" + b"a" * 1000 + b"\r\na\r\n0\r\na: b\r\n\r\n").statuses == [200]


def test_what_follows_the_chunks_is_not_among_the_headers() -> None:
    app = App()
    assert ask(CHUNKED, b"0\r\nX-Request-Id: forged\r\n\r\n", app=app).statuses == [200]
    assert app.headers == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
def test_a_wish_for_another_protocol_is_not_heard_and_the_body_is_read(upgrade: bytes) -> None:
    """As Java's client and `curl --http2` send it with every first request."""
    head = (
        POST + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + upgrade + b"\r\nContent-Length: 2\r\n\r\n"
    )
    app = App()
    assert ask(head + b"ab", head, b"cd", WHOLE, app=app).statuses == [200, 200, 200]
    assert app.bodies == [b"ab", b"cd", b""]


def test_h4_a_body_that_was_answered_before_its_end_is_read_when_it_is_small() -> None:
    app = App()
    heard = ask(EARLY + b"Content-Length: 10\r\n\r\n", b"a" * 10, WHOLE, app=app)
    assert (heard.statuses, app.bodies) == ([200, 200], [b""])


@pytest.mark.parametrize("head", [b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_h4_a_body_that_was_answered_before_its_end_is_not_read_when_it_is_large(head: bytes) -> None:
    heard = ask(EARLY + head, *([b"%x\r\n" % 1000 + b"a" * 1000 + b"\r\n"] * 3))
    assert (heard.statuses, heard.closed) == ([200], True)
    assert b"connection: close" in heard.text


def test_h4_a_client_that_sends_on_after_its_answer_is_cut_off() -> None:
    heard = ask(EARLY + b"Content-Length: 1000000000\r\n\r\n", *([b"a" * 2_000_000] * 10))
    assert heard.closed


async def ask_for_large(more: bytes = b"") -> tuple[socket.socket, asyncio.WriteTransport, ServerState]:
    """Ask for a large answer; our end, the server's, and the connections that it has."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    config = uvicorn.Config(App(), log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    limits = replace(LIMITS, keep_alive_seconds=1)
    transport, _ = await loop.connect_accepted_socket(lambda: limited(limits)(config, state, {}, loop), theirs)
    await loop.sock_sendall(ours, GET.replace(b"/read", b"/large") + HOST + more + b"\r\n")
    return ours, transport, state


def test_h7_an_answer_that_nobody_takes_is_given_up() -> None:
    async def run(seconds: float) -> int:
        ours, _, state = await ask_for_large()
        await asyncio.sleep(seconds)
        left = len(state.connections)
        ours.close()
        await asyncio.sleep(0.05)
        return left

    assert asyncio.run(run(0.2)) == 1
    assert asyncio.run(run(2.5)) == 0


async def take_large(size_bytes: int, pause_seconds: float, more: bytes = b"") -> tuple[int, bool]:
    """Take so much of a large answer, in pieces with pauses between; how much came, and if the server ended it then."""
    ours, transport, state = await ask_for_large(more)
    transport.set_write_buffer_limits(high=2**22, low=2**20)  # it is content while this much is not taken
    taken_bytes = 0
    while taken_bytes < size_bytes and (received := await asyncio.get_running_loop().sock_recv(ours, 200_000)):
        taken_bytes += len(received)
        await asyncio.sleep(pause_seconds)
    await asyncio.sleep(2.5)
    ended = not state.connections
    ours.close()
    await asyncio.sleep(0.05)
    return taken_bytes, ended


def test_h7_an_answer_that_is_taken_slowly_is_given_whole() -> None:
    taken_bytes, _ = asyncio.run(take_large(5_000_000, pause_seconds=0.1))
    assert taken_bytes >= 5_000_000


def test_h7_the_last_part_of_a_last_answer_is_not_waited_for_either() -> None:
    taken_bytes, ended = asyncio.run(take_large(4_200_000, 0, b"Connection: close\r\n"))
    assert taken_bytes < 5_000_000
    assert ended


@pytest.mark.parametrize(
    "name",
    [
        "MLIMG_CONNECTION_LIMIT",
        "MLIMG_HEADER_LIMIT_KIB",
        "MLIMG_HEADER_COUNT_LIMIT",
        "MLIMG_HEADER_TIMEOUT_SECONDS",
        "MLIMG_CHUNK_LIMIT",
        "MLIMG_BODY_RATE_BYTES",
        "MLIMG_KEEP_ALIVE_SECONDS",
    ],
)
def test_a_limit_can_be_set_and_not_be_0(name: str) -> None:
    with pytest.raises(SpecError, match=name):
        Limits.parse({name: "0"})
    assert Limits.parse({name: "7"}) != Limits.parse({})
