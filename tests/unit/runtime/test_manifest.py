import hashlib
import json
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimg.runtime.digest import Digest
from mlimg.runtime.manifest import ModelFile, ModelManifest, check_collisions, model_path


def manifest(*paths: str, **changes: Any) -> ModelManifest:
    files = tuple(ModelFile(PurePosixPath(path), len(path), Digest.of(path.encode())) for path in sorted(paths))
    words: dict[str, Any] = {"name": "digits", "version": "3", "framework": "sklearn", "format": "joblib", **changes}
    return ModelManifest(files=files, **words)


PART = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def is_model_path(text: str) -> bool:
    try:
        model_path(text)
    except ValueError:
        return False
    return True


@given(st.lists(PART, min_size=1, max_size=4).map("/".join))
def test_a_taken_path_is_relative_printable_and_kept_as_it_is(text: str) -> None:
    if is_model_path(text):
        path = model_path(text)
        assert str(path) == text
        assert text.isprintable()
        assert not path.is_absolute()
        assert ".." not in path.parts


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "a/./b",
            "../a",
            "a\\b",
            "a\nb",
            "\x7f",
            "-a",
            "a/-b",
            "con",
            "CON.txt",
            "a/Nul .x",
        ),
        *("com1", "a.", "a ", "x" * 255, "a/" * 2100 + "b", "e\u0301", "\udcff", ".wh.a", "a/.wh..wh..opq", "\u202ea"),
    ],
)
def test_a_path_that_some_system_reads_otherwise_is_refused(text: str) -> None:
    """B9"""
    with pytest.raises(ValueError, match=r"^`") as caught:
        model_path(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["a", "a/b.c", ".hidden", "é", "a-b", "cone", "com", "com10", "x" * 254, "wh.a", "a b"]
)
def test_paths_one_byte_away_are_taken(text: str) -> None:
    """B9, the twins"""
    assert str(model_path(text)) == text


@pytest.mark.parametrize(
    "paths",
    [
        *(("a", "A"), ("a/x", "A/y"), ("a", "a/b"), ("A", "a/b"), ("\u017f", "s"), ("Å", "å"), ("\u0390", "\u1fd3")),
        *(("mlimg.manifest",), ("MLIMG.Manifest",), (".claim",)),
    ],
)
def test_files_that_cannot_lie_side_by_side_are_refused(paths: tuple[str, ...]) -> None:
    """B9"""
    with pytest.raises(ValueError, match=r"one file|one folder|a file and a folder|mlimg writes"):
        check_collisions(map(PurePosixPath, paths))


def test_files_that_only_look_alike_are_taken() -> None:
    check_collisions(map(PurePosixPath, ["a", "b", "a-b/a", "a.b/a", "sub/mlimg.manifest", "sub/.claim"]))


def test_the_set_digest_is_what_sha256sum_makes_of_its_own_listing(tmp_path: Path) -> None:
    paths = ["b", "a/z", "a-b", "a.b", "é", "Z"]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    command = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert manifest(*paths).digest.hex == done.stdout.split()[0]


def test_the_set_digest_does_not_depend_on_name_version_or_packing() -> None:
    one, other = manifest("a", "b"), manifest("a", "b", name="other", version="4", framework="custom")
    assert one.digest == other.digest
    assert one.digest != manifest("a", "c").digest
    assert one.to_bytes() != other.to_bytes()


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
DICTS = st.lists(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers()), max_size=2).map(tuple)


@given(
    st.sets(st.from_regex(r"[a-y]{1,3}(/[a-y]{1,3})?z", fullmatch=True), min_size=1, max_size=6),
    NAMES,
    NAMES,
    DICTS,
    st.none() | st.dictionaries(NAMES, NAMES, min_size=1),
)
def test_a_manifest_is_read_back_as_it_was_written(
    paths: set[str], name: str, version: str, inputs: Any, source: Any
) -> None:
    written = manifest(*paths, name=name, version=version, inputs=inputs, source=source, requires=("numpy",))
    assert ModelManifest.parse(written.to_bytes()) == written
    assert ModelManifest.parse(written.to_bytes()).to_bytes() == written.to_bytes()


def altered(**changes: Any) -> bytes:
    return json.dumps({**json.loads(manifest("a", "b").to_bytes()), **changes}).encode()


FILE = {"path": "a", "size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"[" * 100_000,
        manifest("a").to_bytes().decode().encode("utf-16"),
        b"\xef\xbb\xbf" + manifest("a").to_bytes(),
        manifest("a").to_bytes().replace(b'"name"', b'"name": "x", "name"'),
        altered(schemaVersion=2),
        altered(schemaVersion=True),
        altered(schemaVersion=1.0),
        altered(name=None),
        altered(name=""),
        altered(name="../up"),
        altered(version="-x"),
        altered(version="a\n"),
        altered(framework=1),
        altered(format="a/b"),
        altered(digest=None),
        altered(digest="sha256:" + "0" * 64),
        altered(files=[]),
        altered(files=None),
        altered(files=["a"]),
        altered(files=[FILE]),
        altered(files=[{**FILE, "size": -1}]),
        altered(files=[{**FILE, "size": 2**53}]),
        altered(files=[{**FILE, "size": True}]),
        altered(files=[{**FILE, "size": 1.0}]),
        altered(files=[{**FILE, "size": float("nan")}]),
        altered(files=[{**FILE, "sha256": "0" * 63}]),
        altered(files=[{**FILE, "sha256": "A" * 64}]),
        altered(files=[{**FILE, "path": "../a"}]),
        altered(files=[{**FILE, "path": "\ud800"}]),
        altered(files=[FILE, FILE]),
        altered(files=[{**FILE, "path": "mlimg.manifest"}]),
        altered(requires=[1]),
        altered(inputs=["x"]),
        altered(source=[]),
        altered(source={"uri": 1}),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        ModelManifest.parse(data)


def test_a_manifest_over_64_mib_is_refused_unread() -> None:
    with pytest.raises(ValueError, match="over 64 MiB"):
        ModelManifest.parse(bytes(64 * 1024**2 + 1))


def test_keys_of_later_versions_are_ignored_and_files_sorted() -> None:
    value = json.loads(manifest("b", "a").to_bytes())
    value["files"].reverse()
    assert ModelManifest.parse(json.dumps({**value, "later": 1}).encode()) == manifest("a", "b")


def test_a_manifest_s_digest_counts_every_file() -> None:
    lines = "".join(f"{hashlib.sha256(path).hexdigest()}  {path.decode()}\n" for path in (b"a", b"b"))
    assert manifest("a", "b").digest == Digest.of(lines.encode())
