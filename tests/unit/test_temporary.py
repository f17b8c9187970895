"""Temporary folders: C4 of the fault matrix, as far as no disk has to be mounted, and I9."""

import os
import signal
import subprocess
import sys
import time
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


def begin(prefix: str) -> "subprocess.Popen[str]":
    """A process that has a temporary folder and prints its name."""
    program = (
        "from mlimg.temporary import temporary_folder\n"
        f"with temporary_folder({prefix!r}, 1) as folder:\n"
        "    print(folder, flush=True); input()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )


@pytest.mark.parametrize("prefix", ["mlimg-ca-", "mlimg-build-"])
def test_i9_what_a_killed_run_left_is_swept_and_a_living_ones_stays(root: Path, prefix: str) -> None:
    """I9, and what is left after a second Ctrl-C (I2)."""
    with begin(prefix) as dead, begin(prefix) as alive:
        assert dead.stdout
        assert alive.stdout
        left, kept = Path(dead.stdout.readline().strip()), Path(alive.stdout.readline().strip())
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        (left / "file").write_bytes(b"secret")
        for path in (left, kept):
            os.utime(path, (time.time() - 3600,) * 2)
        with temporary_folder("mlimg-ca-", 1):
            assert not left.exists()
            assert kept.exists()
        alive.communicate("\n")
        assert alive.returncode == 0
    assert list(root.iterdir()) == []


def test_i9_what_only_looks_like_ours_is_not_swept(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "file").touch()
    (root / "mlimg-ca-link").symlink_to(other)
    (root / "mlimg-notes").mkdir()
    (root / "mlimg-build-file").touch()
    for path in root.iterdir():
        os.utime(path, (1, 1), follow_symlinks=False)
    with temporary_folder("mlimg-ca-", 1) as folder:
        assert {path.name for path in root.iterdir()} - {folder.name} == {
            "mlimg-ca-link", "mlimg-notes", "mlimg-build-file"
        }  # fmt: skip
    assert (other / "file").exists()
