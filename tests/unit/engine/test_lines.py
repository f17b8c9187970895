import pytest

from mlimg.engine.lines import MAX_LINE_LENGTH, Lines


def cut(*parts: bytes) -> list[str]:
    lines: list[str] = []
    cutter = Lines(lines.append)
    for part in parts:
        cutter.feed(part)
    cutter.feed(b"", final=True)
    return lines


def test_lines_are_the_same_however_the_bytes_come() -> None:
    text = "erste Zeile\nzweite, mit Umlaut: ä\n\ndritte".encode()
    expected = ["erste Zeile", "zweite, mit Umlaut: ä", "dritte"]
    assert cut(text) == expected
    assert cut(*(text[i : i + 1] for i in range(len(text)))) == expected


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;a title\x07text", "text"),
        (b"a\tb", "a       b"),
        (b"bell \x07", "bell \\x07"),
        ("right to left \u202e".encode(), "right to left \\u202e"),
        (b"10%\r20%", "10%"),
    ],
)
def test_a_line_cannot_drive_the_terminal(raw: bytes, shown: str) -> None:
    assert cut(raw)[0] == shown


def test_a_long_line_is_cut_and_its_rest_dropped() -> None:
    long = b"x" * MAX_LINE_LENGTH
    assert cut(long, b"\n") == [long.decode()]
    assert cut(long, b"yz" * 9000, b"z\nnext\n") == [long.decode() + "…", "next"]
