import os
from pathlib import Path

import pytest

from mlimg.runtime.errors import ModelError
from mlimg.sources.local import open_source
from mlimg.sources.selection import EVERYTHING, Selection, check_pattern


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        ("*.json", ["a.json", ".json"], ["x/a.json", "a.json5", "ajson"]),
        ("**/*.json", ["a.json", "x/a.json", "x/y/a.json"], ["a.jsonl"]),
        ("weights/**", ["weights/a", "weights/x/a"], ["weights", "myweights/a", "x/weights/a"]),
        ("**/cache/**", ["cache/a", "x/cache/y/a"], ["cache", "xcache/a"]),
        ("model-?????.bin", ["model-00001.bin"], ["model-0001.bin", "model-0/001.bin"]),
        ("[ab]*.[!t]xt", ["a.yxt", "b1.mxt"], ["c.yxt", "a.txt"]),
        ("**", ["a", "x/y"], []),
        ("a+b(1).bin", ["a+b(1).bin"], ["aab1.bin", "aab(1)xbin"]),
        ("a[", ["a["], ["a"]),
        ("ä/*", ["ä/x"], ["a/x"]),
    ],
)
def test_a_pattern_takes_whole_paths(pattern: str, taken: list[str], left: list[str]) -> None:
    selection = Selection((check_pattern(pattern),))
    assert [path for path in [*taken, *left] if selection.takes(path)] == taken


@pytest.mark.parametrize("text", ["", "/a", "./a", "a/", "a//b", "../a", "a/../b", "a**", "**a", "a\\b", "a\nb", "!a"])
def test_what_no_path_could_match_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        check_pattern(text)


def test_exclude_wins_over_include() -> None:
    selection = Selection(("*.bin", "x/**"), ("x/*.tmp",))
    assert [path for path in ("a.bin", "x/b", "x/b.tmp", "c") if selection.takes(path)] == ["a.bin", "x/b"]
    assert EVERYTHING.takes("c")


@pytest.mark.parametrize(("include", "exclude"), [(("*.bin", "*.sjon"), ()), ((), ("*.sjon",))])
def test_a_pattern_that_matches_nothing_is_refused(include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    files = ["a.bin", "a.json"]
    with pytest.raises(ModelError, match=r"`\*\.sjon` matches no file"):
        Selection(include, exclude).choose(files, str)
    renamed = [tuple(text.replace("sjon", "json") for text in patterns) for patterns in (include, exclude)]
    assert Selection(*renamed).choose(files, str)


def paths(folder: Path, selection: Selection) -> list[str]:
    return [str(file.path) for file in open_source(folder, selection=selection).inventory()]


def test_a_folder_gives_what_is_selected_and_looks_at_nothing_else(tmp_path: Path) -> None:
    for name in ("model.onnx", "weights/a.bin", "weights/b.tmp", ".git/config", "cache/con"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "cache" / "pipe")
    selection = Selection((), (".git/**", "cache/**", "link", "**/*.tmp"))
    assert paths(tmp_path, selection) == ["model.onnx", "weights/a.bin"]
    assert paths(tmp_path, Selection(("*.onnx",), (".git/**", "cache/**"))) == ["model.onnx"]
    with pytest.raises(ModelError, match="history of a clone"):
        paths(tmp_path, Selection((), ("cache/**", "link")))
    with pytest.raises(ModelError, match="is a link"):
        paths(tmp_path, Selection((), (".git/**", "cache/**")))


def test_a_single_file_is_selected_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert paths(tmp_path / "model.onnx", Selection(("*.onnx",))) == ["model.onnx"]
    with pytest.raises(ModelError, match="matches no file"):
        paths(tmp_path / "model.onnx", Selection(("*.bin",)))
