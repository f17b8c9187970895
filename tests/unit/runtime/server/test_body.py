"""What is JSON to the server, whatever route it comes by. Row L7: one step from too deep is fine."""

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlimg.runtime.server.body import MAX_DEPTH, _slowly, parse
from mlimg.runtime.server.errors import InputError
from tests.unit.runtime.server.conftest import INFER, MakeServer, tensor

ROUTES = {
    INFER: {"inputs": [tensor()]},
    "/v1/models/digits:predict": {"instances": [[1, 2]]},
    "/invocations": {"instances": [[1, 2]]},
    "/v2/repository/index": {},
}


def nested(levels: int, within: str = "") -> str:
    """An object of so many levels that has lists in it, and texts that look as if they had."""
    return '{"]": "\\"[", "a": ' + "[" * (levels - 1) + within + "]" * (levels - 1) + "}"


@pytest.mark.parametrize(("path", "body"), ROUTES.items(), ids=ROUTES)
def test_l7_json_is_nested_so_deeply_and_no_more_by_each_protocol(
    make_server: MakeServer, path: str, body: dict[str, object]
) -> None:
    """Row H3, too."""

    def within(levels: int) -> bytes:
        return json.dumps({**body, "parameters": "deep"}).replace('"deep"', nested(levels - 1)).encode()

    server = make_server()
    assert server.post(within(MAX_DEPTH), path).status == 200
    answer = server.post(within(MAX_DEPTH + 1), path)
    assert (answer.status, answer.json["error"]) == (400, "the body is nested more than 100 levels deep")


@pytest.mark.parametrize(
    "within", ['"' + "[" * 200 + '"', '"\\"' + "{" * 200 + '"', "[]," * 200 + "1", '"\\\\", 1, "["']
)
def test_l7_brackets_beside_each_other_or_in_texts_are_no_depth(within: str) -> None:
    body = nested(MAX_DEPTH - 1, within)
    assert parse(body.encode()) == json.loads(body)
    with pytest.raises(InputError, match="levels deep"):
        parse(f"[[{body}]]".encode())


@pytest.mark.parametrize(
    "body", [b'["' + b"]" * 200 + b'",' + b"[" * 100, b"[" * 10_000_000, b"[]," * 70_000 + b"[" * 101]
)
def test_l7_what_is_not_even_json_is_refused_in_no_time(body: bytes) -> None:
    """Row H3, too."""
    start = time.monotonic()
    with pytest.raises(InputError):
        parse(body)
    assert time.monotonic() - start < 1


WHOLE = (
    b'{"id": "a:b", "inputs": [{"name": "x", "shape": [1, 3], "data": [[1, 2.5, -0e-3]]}], "n": {"a": null, "b": 1}}',
    b'["\\u00e9\\ud83d\\ude00\\n", 1e5, -1E-7, 123456789012345678901234567890, 9007199254740993.0, 4.9e-324]',
    b'  {"a": {"b": [], "c": {}}, "d": [{"e": 1}, {"e": 2}, 3, [{"f": ""}]]}\n',
)
CHARACTERS = b"\":{}[],0123456789-+.eEaxn \\/#'\t\r\0\x0b\x1f\x7f\xc3\xa9\xff"
WORDS = (
    b"\\ud800",
    b"NaN",
    b"Infinity",
    b"true",
    b"null",
    b"//",
    b"\xef\xbb\xbf",
    b"00",
    b"1e999",
    b'"id": 1,',
    b"9" * 30,
)
PIECES = (*(bytes([character]) for character in CHARACTERS), *WORDS)


def read(how: Callable[[bytes], object], body: bytes) -> str:
    try:
        return repr(how(body))
    except InputError as error:
        return f"refused: {error}"


@settings(max_examples=1000)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 2), st.sampled_from(PIECES)), max_size=3),
)
def test_l7_the_fast_parser_takes_nothing_that_the_strict_one_refuses_or_reads_otherwise(
    body: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    """Row H3, too."""
    for at, instead_of, piece in changes:
        body = body[:at] + piece + body[at + instead_of :]
    assert read(parse, body) == read(_slowly, body)


TWICE = (
    b'{"a": 1, "a": 1}',
    b'[[[]], {"b": {"a": 1, "a": 2}}]',
    b'{"a": ":", "b": 1, "b": 2}',
    b'[1, {"a": 1, "a": 2}]',
)


@pytest.mark.parametrize("body", TWICE)
def test_l7_a_key_that_is_there_twice_is_refused(body: bytes) -> None:
    with pytest.raises(InputError, match="is there twice"):
        parse(body)
