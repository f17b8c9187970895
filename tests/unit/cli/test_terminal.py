"""What is printed where: results, failures, bugs."""

import json
import os
import re
from collections.abc import Mapping
from typing import cast

import pytest

from mlimg.cli.terminal import Terminal, as_failure, failure_json, failure_lines
from mlimg.runtime.errors import (
    ConflictError,
    EngineError,
    LimitError,
    LocalIOError,
    MlimgError,
    RemoteTemporaryError,
    UsageError,
)

Capture = pytest.CaptureFixture[str]


def test_results_are_lines_that_github_output_takes(capfd: Capture) -> None:
    Terminal().results({"image": "r/i:1@sha256:ab", "model": "oci://r/m:1"}, {})
    assert capfd.readouterr() == ("image=r/i:1@sha256:ab\nmodel=oci://r/m:1\n", "")


def test_a_result_cannot_add_a_line(capfd: Capture) -> None:
    Terminal().results({"image": "a\nserver=b"}, {})
    assert capfd.readouterr().out == "image=a\\nserver=b\n"


def test_json_is_one_document_and_nothing_else(capfd: Capture) -> None:
    Terminal(json=True).results({"image": "a"}, {"image": {"reference": "a"}})
    assert json.loads(capfd.readouterr().out) == {"image": {"reference": "a"}}


def test_talk_goes_to_stderr_and_quiet_silences_it(capfd: Capture) -> None:
    Terminal().note("hello")
    Terminal(quiet=True).note("not this")
    assert capfd.readouterr() == ("", "hello\n")


def test_a_failure_tells_what_why_and_what_next() -> None:
    error = EngineError("docker could not build x", hint="look at the log", log=["step 3", "\x1b[31mno such file"])
    assert list(failure_lines(error)) == [
        "error: docker could not build x",
        "  step 3",
        "  \\x1b[31mno such file",
        "",
        "hint: look at the log",
    ]


def test_a_failure_in_json_has_the_same_facts_as_keys(capfd: Capture) -> None:
    error = ConflictError("r/i:1: is published with another model", hint="raise model.version")
    error.published = ("oci://r/m:1",)
    status = Terminal(json=True).report_failure(error)
    captured = capfd.readouterr()
    assert status == 19
    assert json.loads(captured.out)["error"] == {
        "class": "conflict",
        "status": 19,
        "object": "r/i:1",
        "fact": "is published with another model",
        "published": ["oci://r/m:1"],
        "retry": False,
        "hint": "raise model.version",
    }
    assert captured.err.startswith("error: r/i:1: is published with another model\n")


def test_only_what_may_pass_by_itself_says_retry() -> None:
    assert failure_json(RemoteTemporaryError("r: timed out"))["retry"] is True
    assert failure_json(ConflictError("r: other"))["retry"] is False


def bug(text: str) -> Exception:
    try:
        raise TypeError(text)
    except TypeError as error:
        return error


def test_what_nobody_expected_is_a_bug_with_an_id_that_repeats(capfd: Capture) -> None:
    """I12: 70, an id, no trace and nothing of the exception's text."""
    status = Terminal().report_failure(bug("canary"))
    captured = capfd.readouterr().err
    assert status == 70
    assert "unexpected TypeError (id " in captured
    assert "--debug" in captured
    assert "Traceback" not in captured
    assert "canary" not in captured
    assert as_failure(bug("one")).message == as_failure(bug("another")).message


def test_a_bug_tells_its_places_in_mlimg_at_once(capfd: Capture) -> None:
    """I12: one that shows once in a thousand runs cannot be asked for again with --debug."""
    with pytest.raises(AttributeError) as caught:
        Terminal().text(cast("str", None))
    assert Terminal().report_failure(caught.value) == 70
    assert re.search(r"^  at cli/terminal\.py:\d+ in text$", capfd.readouterr().err, re.MULTILINE)


def test_debug_shows_the_trace(capfd: Capture) -> None:
    """I12's twin."""
    assert Terminal(debug=True).report_failure(bug("the text")) == 70
    captured = capfd.readouterr().err
    assert "Traceback" in captured
    assert "TypeError: the text" in captured


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), LimitError),
        (OSError(28, "No space left on device", "/tmp/x"), LocalIOError),
        (UsageError("no"), UsageError),
    ],
)
def test_exceptions_with_a_meaning_are_not_bugs(error: BaseException, kind: type[MlimgError]) -> None:
    assert type(as_failure(error)) is kind


def test_an_error_of_a_connection_is_not_taken_for_a_file_s() -> None:
    assert as_failure(ConnectionResetError(104, "reset")).status == 70


def test_a_stdout_that_cannot_be_written_is_20(monkeypatch: pytest.MonkeyPatch) -> None:
    """I5 in small; tests/integration/test_cli.py has it with /dev/full."""

    def full(_descriptor: int, _data: Mapping[str, str]) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("mlimg.cli.terminal.os.write", full)
    with pytest.raises(LocalIOError, match="standard output: No space left"):
        Terminal().text("x")
