"""`docs/faults.md` names a test for each fault, and that test is there and names the fault."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlimg.cli import signals
from mlimg.engine import buildx, docker, endpoint, wire
from mlimg.means import Means
from mlimg.runtime.oci import Access, authorization, credentials, transport
from mlimg.runtime.stores import directory

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS: Mapping[str, list[str]] = {
    row: re.findall(r"`([^`]+\.py::\w+)`", line)
    for row, line in re.findall(r"^\| ([A-IL]\d+) (\|.*)$", PAGE, flags=re.MULTILINE)
}
DUE = (
    *(f"A{number}" for number in (*range(1, 14), 17, 18)),
    *(f"B{number}" for number in (*range(1, 12), 17)),
    *(f"C{number}" for number in (1, 2, 4, *range(6, 9))),
    *(f"D{number}" for number in (*range(1, 8), 11, 12)),
    *(f"E{number}" for number in (*range(1, 26), *range(27, 30))),
    *(f"F{number}" for number in range(1, 16)),
    *(f"G{number}" for number in range(1, 16)),
    *(f"H{number}" for number in (*range(1, 11), *range(12, 17))),
    *(f"I{number}" for number in range(1, 13)),
    *(f"L{number}" for number in (1, 3, 6, 7, 10, 12, 13, 14)),
)


def words_of(name: str) -> str:
    """What a test and its module say of themselves."""
    path, _, function = name.partition("::")
    module = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == function]
    assert len(found) == 1, f"{name} is {len(found)} times there"
    return " ".join((function, ast.get_docstring(found[0]) or "", ast.get_docstring(module) or ""))


def test_every_fault_that_is_due_is_in_the_table_and_once() -> None:
    assert tuple(re.findall(r"^\| ([A-IL]\d+) \|", PAGE, flags=re.MULTILINE)) == DUE


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_held_by_tests_that_name_it(row: str) -> None:
    assert ROWS[row], "no test is named"
    for name in ROWS[row]:
        assert re.search(rf"(?<![a-z0-9]){row}(?!\d)", words_of(name).replace("_", " "), flags=re.IGNORECASE), name


def test_what_is_repeated_in_full_is_a_test_that_reads_the_count() -> None:
    repeated = re.findall(r'"(\w+)",\s*"[^"]*",\s*\d+,\s*"([^"]+)"', (TESTS / "bench" / "repeat.py").read_text())
    assert {row for row, _ in repeated} == {"B3", "E13", "F5", "F14", "G10", "H12", "I1"}
    for row, name in repeated:
        assert row.lower() in words_of(name).lower()
        assert "rounds(" in (TESTS / name.partition("::")[0]).read_text(encoding="utf-8")


def test_the_time_outs_are_those_of_the_code() -> None:
    table = PAGE.partition("## Time-outs")[2]
    documented = [float(text) for text in re.findall(r"\| ([\d.]+) \|$", table, flags=re.MULTILINE)]
    assert documented == [
        endpoint.CONNECT_SECONDS,
        endpoint.ANSWER_SECONDS,
        docker.CALL_SECONDS,
        wire.STALL_SECONDS,
        buildx.STALL_SECONDS,
        (Means.__init__.__kwdefaults__ or {})["build_timeout_seconds"],
        transport._CONNECT_SECONDS,
        Access().stall_seconds,
        Access().attempts,
        authorization._TOKEN_SECONDS,
        credentials._HELPER_SECONDS,
        directory._LOCK_SECONDS,
        signals.DEADLINE_SECONDS,
    ]
