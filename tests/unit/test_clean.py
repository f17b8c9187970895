"""What `mlimg clean` takes for left behind, and what it leaves."""

import os
import time
from pathlib import Path

from mlimg.clean import replaced_models, scratch

DEAD = 2**22 - 1  # above the kernel's default pid_max


def old(path: Path) -> Path:
    day_before_yesterday = time.time() - 2 * 24 * 3600
    os.utime(path, (day_before_yesterday, day_before_yesterday))
    return path


def test_scratch_of_runs_that_are_gone_is_found_and_of_living_ones_not(tmp_path: Path) -> None:
    """I9."""
    local, temporary = tmp_path / ".mlimg", tmp_path / "tmp"
    local.mkdir()
    temporary.mkdir()
    stale = local / f".release.json.{DEAD}"
    stale.write_bytes(b"12345")
    (local / f".release.json.{os.getpid()}").write_bytes(b"")
    (local / "release.json").write_bytes(b"")
    folder = temporary / "mlimg-build-x"
    folder.mkdir()
    (folder / "file").write_bytes(b"1234567")
    old(folder)
    (temporary / "mlimg-build-young").mkdir()
    old(temporary / "mlimg-build-young").touch()
    (temporary / "somebody-elses").mkdir()
    old(temporary / "somebody-elses")

    found = list(scratch(tmp_path, temporary))
    assert {item.what for item in found} == {f"scratch {stale}", f"scratch {folder}"}
    assert sum(item.size_bytes for item in found) == 12
    for item in found:
        item.remove()
    assert not stale.exists()
    assert not folder.exists()
    assert (temporary / "somebody-elses").exists()


def test_a_link_in_the_temporary_folder_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (tmp_path / "mlimg-link").symlink_to(target)
    os.utime(tmp_path / "mlimg-link", (0, 0), follow_symlinks=False)
    assert not list(scratch(tmp_path, tmp_path))


def test_replaced_versions_go_and_the_current_one_stays(tmp_path: Path) -> None:
    store = tmp_path / ".mlimg" / "store" / "digits"
    (store / ".replaced" / "1-x").mkdir(parents=True)
    (store / ".replaced" / "1-x" / "model").write_bytes(b"123")
    (store / "1").mkdir()
    [item] = replaced_models(tmp_path)
    assert item.size_bytes == 3
    item.remove()
    assert (store / "1").is_dir()
    assert not list(replaced_models(tmp_path))
