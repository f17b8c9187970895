"""Every command where a process is not at home: I6 and I10 of the fault matrix, as far as no engine is needed."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.cli.test_main import write_spec

MLIMG = str(Path(sys.executable).with_name("mlimg"))
NOWHERE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
# One of each, with the status it has in a good folder and no engine.
COMMANDS: Mapping[tuple[str, ...], int] = {
    ("init",): 2,
    ("check",): 0,
    ("plan", "--pattern", "load"): 14,
    ("build", "--pattern", "load"): 14,
    ("render", "--pattern", "load", "-o", "out"): 14,
    ("run",): 2,
    ("predict",): 2,
    ("inspect",): 2,
    ("verify", "oci://x"): 2,
    ("templates",): 0,
    ("doctor",): 14,
    ("clean",): 0,
}


def mlimg(folder: Path, *arguments: str, shell: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'{shell} exec "$0" "$@"', MLIMG, *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | NOWHERE | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    write_spec(folder)
    (folder / "model" / "größe.bin").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_fails_otherwise_for_want_of_a_home_or_a_language(folder: Path, arguments: tuple[str, ...]) -> None:
    """I6: with neither home, language nor umask it does what it does with them."""
    done = mlimg(folder, *arguments, shell="umask 000;", HOME="/proc", LC_ALL="C", LANG="C")
    assert done.returncode == COMMANDS[arguments], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_current_folder_that_is_gone_is_10_or_does_not_matter(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """I6."""
    gone = tmp_path / "gone"
    gone.mkdir()
    done = mlimg(gone, *arguments, shell=f"rmdir '{gone}';")
    assert not gone.exists()
    if arguments[0] in {"templates", "doctor", "verify"}:
        assert done.returncode == COMMANDS[arguments], done.stderr
    else:
        assert done.returncode == 10
        assert done.stderr.startswith("error: the current folder has been deleted\n")


def test_a_template_that_cannot_be_copied_whole_is_not_copied(tmp_path: Path) -> None:
    """The kernel lets no file grow over a block; the twin may write."""
    for limit, status in (("1", 20), ("unlimited", 0)):
        done = mlimg(tmp_path, "templates", "copy", "sklearn", "mine", shell=f"ulimit -f {limit};")
        assert done.returncode == status
        assert ("File too large" in done.stderr) is (status == 20)
        assert (tmp_path / "mine").exists() is (status == 0)
