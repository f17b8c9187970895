from pathlib import Path

import pytest

from mlimg.engine.redact import MAX_SECRET_BYTES, Redactor
from mlimg.runtime.errors import CredentialsError


@pytest.mark.parametrize(
    ("secret", "line", "shown"),
    [
        ("hunter2-hunter2\n", "the token hunter2-hunter2 is bad", "the token *** is bad"),
        (
            "machine pypi.example.com login alice-of-ci password s3cr3t-word",
            "401 of pypi.example.com for alice-of-ci:s3cr3t-word",
            "401 of pypi.example.com for ***:***",
        ),
        (
            "[global]\nindex-url = https://ci:s3cr3t-word@host/simple",
            "Looking in https://ci:s3cr3t-word@host/simple",
            None,
        ),
        ('{"key": "s3cr3t-word"}', "key s3cr3t-word", "key ***"),
        ("s3cr3t-word", "Looking in https://user:other-word@host/", "Looking in https://***@host/"),
        ("s3cr3t-word", "s3cr3t-w0rd stays", "s3cr3t-w0rd stays"),
    ],
)
def test_a_secret_is_blotted_out(tmp_path: Path, secret: str, line: str, shown: str | None) -> None:
    """D5, I10; the last row is a twin one letter away."""
    path = tmp_path / "secret"
    path.write_text(secret)
    said = Redactor.of_files([path])(line)
    assert "s3cr3t-word" not in said
    assert shown is None or said == shown


def test_without_secrets_only_urls_change() -> None:
    assert Redactor([])("plain https://host/path") == "plain https://host/path"


def test_a_secret_that_cannot_be_read_is_told_by_name_only(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="absent"):
        Redactor.of_files([tmp_path / "absent"])
    large = tmp_path / "large"
    large.write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    with pytest.raises(CredentialsError, match="512 KiB"):
        Redactor.of_files([large])
