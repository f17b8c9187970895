"""What is JSON to the server, whatever route it comes by. Row L7: one step from too deep is fine."""

import json
import time

import pytest

from mlimg.runtime.server.body import MAX_DEPTH, parse
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
    start = time.monotonic()
    with pytest.raises(InputError):
        parse(body)
    assert time.monotonic() - start < 1
