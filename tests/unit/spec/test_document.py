"""Hostile and careless YAML: refused with its place, quickly, and never guessed at."""

import os
import time
from pathlib import Path

import pytest

from mlimg.runtime.errors import LimitError, MlimgError, SpecError
from mlimg.spec.document import MAX_SPEC_BYTES, parse
from mlimg.spec.load import load_spec
from mlimg.spec.problems import Code, InvalidSpecError

from .conftest import SMALLEST, Load, value_of, with_value

ALIAS_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(load: Load, text: str | bytes) -> InvalidSpecError:
    with pytest.raises(InvalidSpecError) as caught:
        load(text)
    assert caught.value.status == 10
    return caught.value


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("image: a: b\n", "1:9"),
        ("image: [a\n", "2:1"),
        ("image: 'a\n", "2:1"),
        ("server:\n\ttemplate: x\n", "2:1"),
        ("\timage: x\n", "1:1"),
        ("a: b\n---\nc: d\n", "2:1"),
        ("", "1:1"),
        ("# nothing\n", "1:1"),
        ("? [a]\n: b\n", "1:3"),
        ("a: b\nb: \0\n", "2:4"),
        ("a: b\r\nb: \x07\r\n", "2:4"),
        ("a: b\u2028c: d\n", "1:5"),
        ("a: b # \u202e\n", "1:8"),
        ("\ufeffa: b\n", "1:1"),
        ("a: \ufeffb\n", "1:4"),
        (SMALLEST.encode("utf-16"), "1:1"),
        (SMALLEST.encode("utf-16-le"), "1:1"),
        (SMALLEST.encode("utf-32"), "1:1"),
        (b"a: b\nc: \xff\n", "2:4"),
        ("ä: ".encode() + b"\xe4\n", "1:4"),
    ],
)
def test_what_is_not_plain_yaml_in_utf8_is_refused_with_its_place(load: Load, text: str | bytes, place: str) -> None:
    """A1."""
    error = refusal(load, text)
    assert any(str(p.place) == f"mlimg.yaml:{place}" and p.code is Code.SYNTAX for p in error.problems), error.problems


def test_the_same_spec_without_the_fault_loads(load: Load) -> None:
    """A1, the twins: one byte away, each is a spec."""
    assert load(SMALLEST.encode("utf-8"))
    assert load(SMALLEST.replace("\n", "\r\n"))
    assert load("---\n" + SMALLEST + "...\n")
    assert load("%YAML 1.2\n---\n" + SMALLEST)
    assert load(SMALLEST + "# größer, 更大\n")


@pytest.mark.parametrize(
    "text",
    [
        SMALLEST + 'model: {version: "4", source: ./other}\n',
        SMALLEST.replace('version: "3"', 'version: "3"\n  version: "4"'),
        SMALLEST.replace('version: "3"', 'version: "3"\n  "version": "4"'),
        SMALLEST.replace('version: "3"', '<<: {version: "4"}\n  version: "3"'),
    ],
)
def test_a_key_is_written_once(load: Load, text: str) -> None:
    """A3."""
    assert Code.DUPLICATE_KEY in {problem.code for problem in refusal(load, text).problems}


def test_the_second_of_two_keys_is_shown_with_the_line_of_the_first(load: Load) -> None:
    """A3."""
    error = refusal(load, SMALLEST + "image: other\n")
    assert error.message == "mlimg.yaml:7:1: image: the key is there already, in line 1"


def test_aliases_are_refused_before_they_are_followed(load: Load) -> None:
    """A4."""
    assert len(ALIAS_BOMB) < 400
    started = time.process_time()
    error = refusal(load, ALIAS_BOMB)
    assert time.process_time() - started < 1
    assert Code.ALIAS in {problem.code for problem in error.problems}
    assert refusal(load, SMALLEST.replace("sklearn", "&a sklearn")).problems[0].code is Code.ALIAS
    assert load(SMALLEST.replace("sklearn", '"sklearn"  # &a *a'))


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 20_000, "{a: " * 20_000, "- " * 20_000, "? " * 20_000, "a: a\na: " + "[" * 20_000],
)
def test_deep_nesting_is_over_a_limit_at_once(load: Load, text: str) -> None:
    """A5."""
    started = time.process_time()
    with pytest.raises(LimitError, match="nested deeper than 16 levels") as caught:
        load(text)
    assert caught.value.status == 21
    assert time.process_time() - started < 1


def test_nesting_below_the_limit_is_no_limit_error(load: Load) -> None:
    """A5, the twin."""
    refusal(load, "a: " + "[" * 15 + "]" * 15)


def test_too_many_values_are_over_a_limit(load: Load) -> None:
    with pytest.raises(LimitError, match="more than 10000 values"):
        load("a: [" + "1," * 20_000 + "]")


def test_what_is_no_file_is_refused_without_waiting(folder: Path) -> None:
    """A6."""
    os.mkfifo(folder / "fifo")
    (folder / "mlimg.yaml").mkdir()
    with (folder / "huge").open("wb") as file:
        file.truncate(5 * 1024**3)
    for path in [folder / "fifo", folder, Path("/dev/zero"), Path("/dev/tty"), folder / "huge"]:
        started = time.monotonic()
        with pytest.raises(MlimgError) as caught:
            load_spec(path)
        assert caught.value.status == (20 if path == Path("/dev/tty") and "cannot be read" in str(caught.value) else 10)
        assert time.monotonic() - started < 1


def test_a_spec_of_exactly_one_mebibyte_is_read(load: Load) -> None:
    """A6, the twin."""
    padded = SMALLEST + "#" * (MAX_SPEC_BYTES - len(SMALLEST))
    assert load(padded)
    with pytest.raises(SpecError, match="over 1 MiB"):
        load(padded + "#")


CHANGED_BY_YAML = "1.10 1.0 1. no yes off true 2024-01-31 007 08 1e3 0x1F 0o7 1_000 null".split()  # noqa: SIM905
NO_TAGS_EITHER = ["~", "+3", "-0", ".5", ".inf", "=", "2024-01-31T10:00:00Z", "12:30:45"]


@pytest.mark.parametrize("text", CHANGED_BY_YAML + NO_TAGS_EITHER)
def test_a_version_that_yaml_would_change_is_to_be_quoted(load: Load, text: str) -> None:
    """A7."""
    for key, plain in [
        ("model.version", SMALLEST.replace('"3"', text)),
        ("server.version", SMALLEST.replace("sklearn", f"sklearn\n  version: {text}")),
    ]:
        error = refusal(load, plain)
        assert "quote it" in error.message
        assert error.problems[0].key == key


@pytest.mark.parametrize("text", CHANGED_BY_YAML)
def test_a_version_in_quotes_is_taken_as_written(load: Load, text: str) -> None:
    """A7, the twins."""
    assert load(SMALLEST.replace('"3"', f'"{text}"')).spec.model.version == text


@pytest.mark.parametrize("text", ["3", "0", "20260131", "1" * 40, "v1", "1.0.0", "1.7.2-rc1", "abc"])
def test_a_version_that_yaml_reads_as_written_needs_no_quotes(load: Load, text: str) -> None:
    """A7, the twins."""
    assert load(SMALLEST.replace('"3"', text)).spec.model.version == text


def test_other_texts_that_look_like_numbers_are_to_be_quoted_too(load: Load) -> None:
    """A7: an environment has texts alone, and 1.10 is not 1.1 there."""
    text = SMALLEST.replace("sklearn", "sklearn\n  env: {A: 2, B: 1.10, C: no, D: on}")
    problems = refusal(load, text).problems
    assert [problem.key for problem in problems] == [f"server.env.{name}" for name in "ABCD"]
    assert '"1.10"' in problems[1].message
    quoted = SMALLEST.replace("sklearn", 'sklearn\n  env: {A: "2", B: "1.10", C: "no", D: "on"}')
    assert load(quoted).spec.server.env == {"A": "2", "B": "1.10", "C": "no", "D": "on"}


def test_a_key_that_is_no_text_to_yaml_is_to_be_quoted(load: Load) -> None:
    """A7."""
    assert "quote it" in refusal(load, SMALLEST.replace("sklearn", "sklearn\n  env: {NO: x}")).message
    assert load(SMALLEST.replace("sklearn", 'sklearn\n  env: {"NO": x}')).spec.server.env == {"NO": "x"}


def test_an_empty_value_is_told_as_empty(load: Load) -> None:
    assert "is empty" in refusal(load, SMALLEST + "build:\n").message


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!include", "!!str", "!", "!<tag:x>"])
def test_tags_are_refused_and_nothing_is_made_of_them(load: Load, tag: str) -> None:
    """A8."""
    for value in ("sklearn", "[touch planted]"):
        error = refusal(load, SMALLEST.replace("sklearn", f"{tag} {value}"))
        assert [problem.code for problem in error.problems] == [Code.TAG]
    assert not Path("planted").exists()


def test_a_trailing_newline_is_part_of_a_text_and_refused(load: Load) -> None:
    """A10: `$` in a pattern would let it pass."""
    for key in ("image", "server.template", "server.version", "server.base", "model.name", "model.version"):
        good = value_of(load(with_value(key, "sklearn")), key)
        assert good == "sklearn"
        with pytest.raises(InvalidSpecError) as caught:
            load(with_value(key, "sklearn\n"))
        assert {problem.key for problem in caught.value.problems} == {key}
    assert load(SMALLEST.replace('"3"', "|-\n    3")).spec.model.version == "3"
    refusal(load, SMALLEST.replace('"3"', "|\n    3"))


def test_a_place_is_counted_as_editors_count() -> None:
    document = parse("größe: 1\r\nimage: ü\n".encode(), "mlimg.yaml")
    assert str(document.values["größe",]) == "mlimg.yaml:1:8"
    assert str(document.values["image",]) == "mlimg.yaml:2:8"
