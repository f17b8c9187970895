"""Progress as lines and as a moving display: the same facts, and never a control character from outside."""

import io
import re

import pytest
from rich.console import Console

from mlimg.cli.live import LiveReporter
from mlimg.cli.plain import PlainReporter
from mlimg.cli.units import seconds, size
from mlimg.report import Reporter

HOSTILE = "step \x1b[2J\u202e[bold]end"


def report(reporter: Reporter) -> None:
    reporter.note(HOSTILE)
    reporter.warn("old base")
    with reporter.step("push r/i:1", 2_000_000) as step:
        step.advance(2_000_000)
        step.update(HOSTILE)


def test_lines_say_what_begins_what_happens_and_what_it_came_to() -> None:
    lines: list[str] = []
    report(PlainReporter(lines.append))
    assert lines[1] == "warning: old base"
    assert lines[2] == "push r/i:1 ..."
    assert re.fullmatch(r"push r/i:1: done in \d\.\d s, 2\.0 MB", lines[4])
    assert all(line.isprintable() for line in lines)


def test_lines_say_each_state_once_however_often_a_push_tells_it() -> None:
    lines: list[str] = []
    with PlainReporter(lines.append).step("push") as step:
        for _ in range(100):
            for layer in "ab":
                step.update(f"{layer}: Pushing")
    assert lines[1:-1] == ["  a: Pushing", "  b: Pushing"]


def test_quiet_keeps_only_warnings() -> None:
    lines: list[str] = []
    report(PlainReporter(lines.append, quiet=True))
    assert lines == ["warning: old base"]


def test_a_live_display_ends_with_the_same_facts() -> None:
    text = io.StringIO()
    report(LiveReporter(Console(file=text, width=100, force_terminal=False, no_color=True)))
    shown = text.getvalue()
    assert "warning: old base" in shown
    assert "✓ push r/i:1" in shown
    assert "2.0 MB" in shown
    assert "[bold]" in shown  # nobody's text is markup
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_a_step_that_fails_is_not_called_done() -> None:
    lines: list[str] = []
    with pytest.raises(ValueError, match="x"), PlainReporter(lines.append).step("push"):
        raise ValueError("x")
    assert lines == ["push ..."]


def test_steps_may_nest() -> None:
    reporter = LiveReporter(Console(file=io.StringIO(), width=100))
    with reporter.step("outer"), reporter.step("inner") as inner:
        inner.advance(1)


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (4.2e9, "4.2 GB")]
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


def test_durations() -> None:
    assert (seconds(0.44), seconds(200)) == ("0.4 s", "3 min 20 s")
