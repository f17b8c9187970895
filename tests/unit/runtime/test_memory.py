"""The memory a model needs is told beforehand. Bar: G9."""

import logging
from pathlib import Path

import pytest

from mlimg.runtime.memory import memory_limit_bytes, tell_need
from tests.support.payloads import FILES, payload

SIZE = sum(len(data) for data in FILES.values())


def limit(folder: Path, text: str) -> tuple[Path, ...]:
    (folder / "memory.max").write_text(text)
    return (folder / "none", folder / "memory.max")


@pytest.mark.parametrize(
    ("text", "expected"), [("1048576\n", 2**20), ("max\n", None), ("9223372036854771712\n", None), ("", None)]
)
def test_the_limit_is_that_of_the_control_group(tmp_path: Path, text: str, expected: int | None) -> None:
    assert memory_limit_bytes(limit(tmp_path, text)) == expected


def test_g9_a_model_larger_than_the_memory_is_told_before_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tell_need(payload().manifest, limit(tmp_path, str(SIZE)))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    tell_need(payload().manifest, limit(tmp_path, str(SIZE - 1)))
    assert caplog.records[-1].levelname == "WARNING"
    assert f"{SIZE} bytes" in caplog.text
    assert str(SIZE - 1) in caplog.text
