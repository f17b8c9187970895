import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimg.runtime.digest import Digest, canonical_json

GOOD = "sha256:" + "0123456789abcdef" * 4


def test_a_digest_is_sha256_and_64_lower_case_hex_digits() -> None:
    assert Digest.parse(GOOD).text == GOOD
    assert Digest.parse(GOOD).hex == GOOD.removeprefix("sha256:")
    assert str(Digest.parse(GOOD)) == GOOD


@pytest.mark.parametrize(
    "text",
    ["", GOOD[:-1], GOOD + "0", GOOD + "\n", GOOD.upper(), GOOD.replace("sha256", "sha512"), "0" * 64, f" {GOOD}"],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        Digest.parse(text)


@given(st.binary())
def test_a_digest_of_bytes_is_their_sha256(data: bytes) -> None:
    assert Digest.of(data) == Digest.parse("sha256:" + hashlib.sha256(data).hexdigest())


def test_a_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3_000_000))
    assert Digest.of_file(tmp_path / "f") == Digest.of(bytes(3_000_000))


def test_one_value_has_one_canonical_text() -> None:
    assert canonical_json({"b": [1, "é"], "a": None}) == canonical_json({"a": None, "b": [1, "é"]})
    assert canonical_json({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"é"]}'.encode()
