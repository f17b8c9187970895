"""Reading small files into a build context: C8 of the fault matrix."""

import os
import tempfile
from pathlib import Path, PurePosixPath

import pytest

from mlimg import files
from mlimg.files import read_context_file, read_context_folder, read_file
from mlimg.runtime.errors import ContextError, LimitError, LocalIOError
from tests.support.models import nobody


@pytest.mark.parametrize(("mode", "kept"), [(0o600, 0o644), (0o664, 0o644), (0o700, 0o755), (0o4755, 0o755)])
def test_of_a_files_mode_only_executable_is_kept(tmp_path: Path, mode: int, kept: int) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "a").chmod(mode)
    file = read_context_file(tmp_path / "a", PurePosixPath("b"))
    assert (file.path, file.data, file.mode) == (PurePosixPath("b"), b"a", kept)


@pytest.mark.parametrize("grow", [True, False])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grow: bool
) -> None:
    """C8: the writer strikes between the first look at the file and the last."""
    path = tmp_path / "handler.py"
    path.write_bytes(b"x" * 100)
    looks = []
    fstat = os.fstat

    def write_before_the_last_look(descriptor: int) -> os.stat_result:
        looks.append(descriptor)
        if len(looks) == 2:
            path.write_bytes(b"y" * (200 if grow else 100))
        return fstat(descriptor)

    monkeypatch.setattr(files.os, "fstat", write_before_the_last_look)
    with pytest.raises(ContextError, match="changed while it was read") as caught:
        read_file(path)
    assert caught.value.status == 13
    monkeypatch.undo()
    assert read_file(path) == path.read_bytes()


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(ContextError, match="not a regular file"):
        read_file(tmp_path / "pipe")
    with pytest.raises(ContextError, match="link"):
        read_file(tmp_path / "link")
    with pytest.raises(LocalIOError):
        read_file(tmp_path / "absent")


def test_a_file_too_large_for_a_context_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(files.MAX_FILE_BYTES + 1)
    with pytest.raises(LimitError, match="over 64 MiB"):
        read_file(tmp_path / "large")


@pytest.mark.parametrize("mode", [0, 0o444])
def test_a_folder_that_may_not_be_read_is_told_rather_than_left_out(mode: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        Path(root, "features").mkdir()
        Path(root, "features", "text.py").write_text("")
        Path(root, "features").chmod(mode)
        with nobody(), pytest.raises(LocalIOError, match=r"features.*: Permission denied"):
            list(read_context_folder(Path(root)))
        Path(root, "features").chmod(0o755)
        assert [str(file.path) for file in read_context_folder(Path(root))] == ["features/text.py"]
