"""Temporary folders: C4 of the fault matrix, as far as no disk has to be mounted."""

import os
from pathlib import Path

import pytest

from mlimg.runtime.errors import LocalIOError
from mlimg.temporary import remove_all, temporary_folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_temporary_folder_is_private_and_gone_afterwards(root: Path) -> None:
    before = os.umask(0)
    try:
        with temporary_folder("mlimg-x-", 1) as folder:
            assert folder.parent == root
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "file").touch()
    finally:
        os.umask(before)
    assert list(root.iterdir()) == []


def test_needed_and_free_bytes_are_told_before_anything_is_written(root: Path) -> None:
    """C4."""
    found = os.statvfs(root)
    free_bytes = found.f_bavail * found.f_frsize
    with pytest.raises(LocalIOError, match=rf"^{root}: .* bytes are needed .* [\d,]+ are free$") as caught:
        temporary_folder("mlimg-x-", free_bytes + (1 << 40)).__enter__()
    assert caught.value.status == 20
    assert "TMPDIR" in caught.value.hint
    assert list(root.iterdir()) == []


def test_a_folder_that_is_not_there_is_told_and_no_other_is_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C4: Python itself would go on in /tmp, or in the current folder."""
    monkeypatch.setenv("TMPDIR", str(root / "absent"))
    with pytest.raises(LocalIOError, match=r"absent: no temporary folder can be made: No such file"):
        temporary_folder("mlimg-x-", 1).__enter__()


def test_a_process_that_ends_without_unwinding_takes_its_folders_with_it(root: Path) -> None:
    with temporary_folder("mlimg-x-", 1) as folder:
        (folder / "file").touch()
        remove_all()
        assert list(root.iterdir()) == []
