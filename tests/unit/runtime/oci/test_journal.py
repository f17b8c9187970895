"""What one process notes for the next is small, private, and never believed without need."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlimg.runtime.oci.journal import Entry, Journal

NAMES = ("registry.example", "team/app", "sha256:1")
ENTRY = Entry("https://registry.example/v2/team/app/blobs/uploads/1?token=secret", 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "uploads"


def noted(folder: Path) -> Path:
    with Journal(folder).hold(*NAMES) as slot:
        assert slot is not None
        slot.write(ENTRY)
    (path,) = folder.glob("*.json")
    return path


def read(folder: Path, names: tuple[str, str, str] = NAMES) -> Entry | None:
    with Journal(folder).hold(*names) as slot:
        assert slot is not None
        return slot.read()


def test_what_is_noted_is_read_by_the_next_and_by_nobody_else(folder: Path) -> None:
    path = noted(folder)
    assert read(folder) == ENTRY
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [other.name for other in folder.iterdir()] == [path.name]  # no lock, nothing temporary
    for other in (("other.example", *NAMES[1:]), (NAMES[0], "team/other", NAMES[2]), (*NAMES[:2], "sha256:2")):
        assert read(folder, other) is None
    assert "secret" not in repr(ENTRY)


def test_what_is_forgotten_is_gone(folder: Path) -> None:
    noted(folder)
    with Journal(folder).hold(*NAMES) as slot:
        assert slot is not None
        slot.forget()
        slot.forget()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        {"offset": -1},
        {"offset": True},
        {"offset": "5"},
        {"location": 5},
        {"key": "sha256:2"},
        {"registry": "other.example"},
        {"offset": None},
    ],
)
def test_an_entry_that_makes_no_sense_is_none(folder: Path, damage: dict[str, object]) -> None:
    path = noted(folder)
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value))
    assert read(folder) == ENTRY
    path.write_text(json.dumps({**value, **damage}))
    assert read(folder) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"5", b"[" * 100_000, b"x" * 10**6])
def test_a_damaged_entry_is_none(folder: Path, content: bytes) -> None:
    noted(folder).write_bytes(content)
    assert read(folder) is None


@pytest.mark.parametrize(("age_days", "found"), [(0, True), (6.9, True), (7.1, False), (-1, False)])
def test_an_entry_is_good_for_a_week(folder: Path, age_days: float, found: bool) -> None:
    path = noted(folder)
    when = time.time() - age_days * 24 * 3600
    os.utime(path, (when, when))
    assert (read(folder) is not None) == found
    assert path.exists() == (age_days < 7)


def test_two_that_push_the_same_do_not_share_a_session(folder: Path) -> None:
    with Journal(folder).hold(*NAMES) as first:
        assert first is not None
        with Journal(folder).hold(*NAMES) as second:
            assert second is None
        with Journal(folder).hold(*NAMES[:2], "sha256:2") as other:
            assert other is not None
    with Journal(folder).hold(*NAMES) as again:
        assert again is not None


def test_a_killed_process_leaves_no_lock_behind(folder: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom mlimg.runtime.oci.journal import Entry, Journal\n"
        f"with Journal(Path(sys.argv[1])).hold(*{NAMES!r}) as slot:\n"
        "    slot.write(Entry('https://registry.example/1', 5))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == -9
    assert read(folder) == Entry("https://registry.example/1", 5)


def test_a_folder_that_cannot_be_used_only_means_that_nothing_resumes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Journal(tmp_path / "file").hold(*NAMES) as slot:
        assert slot is None
    with Journal(tmp_path / "file" / "below").hold(*NAMES) as slot:
        assert slot is None


def test_a_folder_that_vanishes_meanwhile_is_no_failure(folder: Path) -> None:
    with Journal(folder).hold(*NAMES) as slot:
        assert slot is not None
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        slot.write(ENTRY)
        assert slot.read() is None
        slot.forget()


def test_old_locks_and_leftovers_are_swept(folder: Path) -> None:
    path = noted(folder)
    for name in (".temporary", "dead.lock"):
        (folder / name).touch()
        os.utime(folder / name, (1, 1))
    read(folder)
    assert [other.name for other in folder.iterdir()] == [path.name]
