"""Compressed bodies and answers. Row H4: a bomb is 413, and no more of it is inflated than the limit."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from tests.unit.runtime.server.conftest import INFER, Answer, MakeServer, Server, tensor

SMALL = b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [2], "data": [1, 2]}]}'
LARGE = SMALL + b" " * 300_000
BOTH = pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])


def post(server: Server, body: bytes, encoding: str, accepted: str = "") -> Answer:
    headers = {"Content-Encoding": encoding} | ({"Accept-Encoding": accepted} if accepted else {})
    return server.post(body, INFER, headers)


@BOTH
@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
def test_a_compressed_body_is_inflated(
    make_server: MakeServer, encoding: str, compress: Callable[[bytes], bytes], body: bytes
) -> None:
    answer = post(make_server(), compress(body), encoding)
    assert answer.json["outputs"][0]["data"] == [1, 2]


@BOTH
@pytest.mark.parametrize("size", [1000, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 200_000])
def test_the_limit_is_that_of_the_inflated_body(
    make_server: MakeServer, encoding: str, compress: Callable[[bytes], bytes], size: int
) -> None:
    server = make_server(body_limit_bytes=size)
    assert post(server, compress(SMALL.ljust(size)), encoding).status == 200
    assert post(server, compress(SMALL.ljust(size + 1)), encoding).status == 413


def test_h4_a_bomb_takes_no_more_memory_than_the_limit(make_server: MakeServer) -> None:
    limit, server = 2**20, make_server(body_limit_bytes=2**20)
    bomb = gzip.compress(bytes(200 * 2**20))
    assert len(bomb) < limit
    assert post(server, gzip.compress(SMALL), "gzip").status == 200
    tracemalloc.start()
    try:
        assert post(server, bomb, "gzip").status == 413
        assert tracemalloc.get_traced_memory()[1] < 4 * limit
    finally:
        tracemalloc.stop()


@BOTH
@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
def test_what_is_no_compressed_body_is_400(
    make_server: MakeServer, encoding: str, compress: Callable[[bytes], bytes], body: bytes
) -> None:
    whole = compress(body)
    broken = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
    other = gzip.compress(body) if encoding == "deflate" else zlib.compress(body)
    for bad in (b"", body, whole[:-1], whole[: len(whole) // 2], whole + b"\0", whole * 2, broken, other):
        answer = post(make_server(), bad, encoding)
        assert (answer.status, set(answer.json)) == (400, {"error"})


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x"])
def test_another_encoding_is_415_and_told_which_there_are(make_server: MakeServer, encoding: str) -> None:
    answer = post(make_server(), SMALL, encoding)
    assert answer.status == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert post(make_server(), SMALL, "identity").status == 200


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, deflate;q=0.5, GZIP", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000", None),
        ("identity", None),
        ("br", None),
        ("", None),
    ],
)
def test_an_answer_is_compressed_as_the_client_takes_it(
    make_server: MakeServer, accepted: str, encoding: str | None
) -> None:
    body = {"inputs": [tensor(shape=[1000], data=list(range(1000)))]}
    answer = make_server().post(body, INFER, {"Accept-Encoding": accepted} if accepted else {})
    plain = make_server().post(body).text
    sent = answer.text.encode(errors="surrogateescape")
    assert answer.headers.get("content-encoding") == encoding
    assert int(answer.headers["content-length"]) == len(sent)
    if encoding is not None:
        sent = gzip.decompress(sent) if encoding == "gzip" else zlib.decompress(sent)
    assert sent.decode() == plain


def test_a_short_answer_is_not_worth_it(make_server: MakeServer) -> None:
    assert "content-encoding" not in make_server().post(SMALL, INFER, {"Accept-Encoding": "gzip"}).headers


def test_the_event_loop_goes_on_while_a_large_body_is_inflated(make_server: MakeServer) -> None:
    server = make_server()

    async def run() -> int:
        body = gzip.compress(SMALL.ljust(50_000_000))
        large = asyncio.create_task(server.request("POST", INFER, [body], {"Content-Encoding": "gzip"}))
        turns = 0
        while not server.calls and not large.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert (await large).status == 200
        return turns

    assert asyncio.run(run()) > 5
