"""The process around a command: usage errors, what is imported, and the ends a process can have."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlimg.cli.main import run

MLIMG = Path(sys.executable).with_name("mlimg")
Capture = pytest.CaptureFixture[str]


def mlimg(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MLIMG, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def write_spec(folder: Path) -> None:
    (folder / "mlimg.yaml").write_text(
        'image: digits\nserver: {template: python, code: ./serve}\nmodel: {version: "1", source: ./model}\n'
    )
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(b"\x00\x01\x02")
    (folder / "serve").mkdir()
    (folder / "serve" / "handler.py").write_text("def load(d, o): ...\ndef predict(m, i): ...\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["biuld"], "biuld"),
        (["build", "--patern", "load"], "--patern"),
        (["build", "--pattern", "sideways"], "sideways"),
        (["render"], "--output"),
        (["run", "--port", "70000"], "--port"),
    ],
)
def test_a_wrong_command_line_is_2_in_our_own_words(arguments: list[str], told: str, capfd: Capture) -> None:
    assert run(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert told in captured.err
    assert "hint: `mlimg" in captured.err


def test_a_wrong_command_line_is_json_where_that_is_asked_for(capfd: Capture) -> None:
    assert run(["build", "--json", "--patern", "load"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["class"] == "usage"


def test_the_version_is_told(capfd: Capture) -> None:
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("mlimg ")


def test_a_build_without_a_pattern_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    write_spec(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(["build"]) == 2
    told = capfd.readouterr().err
    assert "--pattern in-image" in told
    assert "--pattern load" in told
    assert "`pattern:`" in told


def test_an_unexpected_exception_is_70_from_any_command(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    """I12."""

    def broken() -> dict[str, object]:
        raise ZeroDivisionError("canary")

    monkeypatch.setattr("mlimg.spec.load.json_schema", broken)
    assert run(["check", "--schema"]) == 70
    quiet = capfd.readouterr().err
    assert "canary" not in quiet
    assert "ZeroDivisionError" in quiet
    assert run(["check", "--schema", "--debug"]) == 70
    assert "canary" in capfd.readouterr().err


HEAVY = ("docker", "obstore", "jinja2", "starlette")


@pytest.mark.parametrize("arguments", [["--help"], ["check"], ["build", "--help"]])
def test_help_and_check_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    write_spec(tmp_path)
    program = (
        "import sys; from mlimg.cli.main import run; status = run(sys.argv[1:]); "
        f"print(status, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_the_steps_of_a_release_import_neither_the_engines_sdk_nor_what_renders() -> None:
    program = f"import mlimg.release, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_walk_over_imports_would_see_docker() -> None:
    program = f"import docker, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "['docker']\n"


def test_a_module_in_the_current_folder_is_not_imported(tmp_path: Path) -> None:
    """I14: neither as it is, nor by an empty entry of PYTHONPATH."""
    write_spec(tmp_path)
    (tmp_path / "yaml.py").write_text("raise SystemExit('planted')")
    assert mlimg("check", cwd=tmp_path).returncode == 0
    assert mlimg("check", cwd=tmp_path, PYTHONPATH=f":{tmp_path.parent}").returncode == 0
    # Twin: a folder that is named is asked for.
    assert "planted" in mlimg("check", cwd=tmp_path.parent, PYTHONPATH=str(tmp_path)).stderr


def test_no_home_at_all_does_not_matter(tmp_path: Path) -> None:
    """I6."""
    write_spec(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run([MLIMG, "check"], cwd=tmp_path, env=environment, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0


def test_umask_000_opens_nothing_of_ours(tmp_path: Path) -> None:
    """I6: what is ours lies in a folder that only its owner enters; nothing is writable to others."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"\x00\x01\x02")
    done = subprocess.run(
        ["sh", "-c", f"umask 000; exec '{MLIMG}' init"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".mlimg").stat().st_mode & 0o777 == 0o700
    made = [tmp_path / "mlimg.yaml", *(tmp_path / ".mlimg").rglob("*")]
    assert len(made) >= 3
    assert not [path for path in made if path.stat().st_mode & 0o022]


def test_help_into_a_full_disk_is_20_and_into_a_closed_pipe_141() -> None:
    """I5."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [MLIMG, "check", "--schema"], stdout=full, stderr=subprocess.PIPE, timeout=30, check=False
        )
    assert done.returncode == 20
    assert b"standard output: No space left" in done.stderr
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([MLIMG, "check", "--schema"], stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


def test_no_stdout_at_all_is_20_where_something_had_to_be_said(tmp_path: Path) -> None:
    """I5: and what would have been stdout is no file that was opened later."""
    write_spec(tmp_path)
    closed = subprocess.run(
        ["sh", "-c", f"exec '{MLIMG}' check --schema >&-"], cwd=tmp_path, capture_output=True, timeout=30, check=False
    )
    assert closed.returncode == 20
    silent = subprocess.run(
        ["sh", "-c", f"exec '{MLIMG}' check >&- 2>&-"], cwd=tmp_path, capture_output=True, timeout=30, check=False
    )
    assert silent.returncode == 0


WAITING = """
import sys, time
from mlimg.cli import signals
import mlimg.cli.main as main
def wait(arguments):
    try:
        print("waiting", flush=True)
        time.sleep(30)
    finally:
        {cleaning}
main._invoke = lambda arguments, terminal: wait(arguments)
main.main()
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["INT", "TERM", "HUP"],
)
@pytest.mark.parametrize("cleaning", ["pass", "time.sleep(30)"], ids=["clean", "stuck"])
def test_a_signal_ends_the_process_in_two_seconds(number: signal.Signals, status: int, cleaning: str) -> None:
    """I1: even where cleaning up hangs."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING.format(cleaning=cleaning)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        begun = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == status
        took = time.monotonic() - begun
    assert took < 2.5  # two seconds, and the machine's own slowness
    assert cleaning == "pass" or took > 1.5, "the clean-up did not hang"


def test_a_second_interrupt_ends_it_at_once() -> None:
    """I2's part of the process; the clean-up of the first is still hanging."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING.format(cleaning="print('cleaning', flush=True); time.sleep(30)")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"cleaning\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - begun < 1


def test_an_interrupt_on_its_way_out_changes_nothing() -> None:
    """I2: the interpreter has no handlers any more by then."""
    program = """\
import builtins, os, signal
from mlimg.cli import main

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
        kill(pid, number)

builtins.last = Last()
main._invoke = lambda arguments, terminal: os.kill(os.getpid(), signal.SIGINT)
main.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert done.returncode == 130


def test_an_ignored_hangup_stays_ignored() -> None:
    """nohup."""
    program = (
        "import os, signal; from mlimg.cli import signals; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "signals.install(); os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "alive\n"
