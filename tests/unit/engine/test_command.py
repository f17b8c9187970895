"""Programs that print too much, hang, leave children or are interrupted."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimg.engine.command import CommandFailed, run
from mlimg.engine.lines import MAX_LINE_LENGTH


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_both_streams_are_read_line_by_line() -> None:
    lines: list[str] = []
    done = run(["sh", "-c", "echo one; echo two >&2; printf three"], timeout_seconds=10, on_line=lines.append)
    assert lines == list(done.tail) == ["one", "two", "three"]


def test_input_larger_than_a_pipe_is_given_while_output_is_read() -> None:
    chunks = [b"x" * 100_000] * 20
    done = run(["sh", "-c", "tee /dev/null | wc -c"], stdin=chunks, timeout_seconds=10)
    assert done.tail == ("2000000",)


def test_a_program_that_reads_nothing_is_no_error() -> None:
    assert run(["true"], stdin=b"x" * 1_000_000, timeout_seconds=10).tail == ()


def test_a_failure_tells_status_and_last_lines() -> None:
    with pytest.raises(CommandFailed, match="ended with status 3") as failed:
        run(["sh", "-c", "seq 1 200; exit 3"], timeout_seconds=10)
    assert failed.value.status == 3
    assert failed.value.tail[-1] == "200"
    assert len(failed.value.tail) == 50


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(CommandFailed, match="cannot be started") as failed:
        run(["/nonexistent/program"], timeout_seconds=10)
    assert failed.value.status is None


def test_the_environment_is_the_given_one() -> None:
    assert run(["/usr/bin/env"], env={"ONLY": "this"}, timeout_seconds=10).tail == ("ONLY=this",)


@pytest.mark.parametrize(
    ("limit", "told"), [({"timeout_seconds": 0.5}, "not done"), ({"stall_seconds": 0.5}, "silent")]
)
def test_a_hanging_program_is_ended_with_its_children(tmp_path: Path, limit: dict[str, float], told: str) -> None:
    """D6."""
    pids = tmp_path / "pids"
    script = f"trap '' INT; sleep 600 & echo $! > {pids}; echo $$ >> {pids}; wait"
    with pytest.raises(CommandFailed, match=told):
        run(["sh", "-c", script], **{"timeout_seconds": 60, **limit})
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_a_program_that_keeps_printing_is_not_silent() -> None:
    done = run(["sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.2; done"], timeout_seconds=10, stall_seconds=0.6)
    assert done.tail[-1] == "4"


def test_an_error_in_the_input_ends_the_program(tmp_path: Path) -> None:
    """C8, as far as the build call goes: a context that breaks off never becomes an image."""
    pid = tmp_path / "pid"

    def broken() -> Iterator[bytes]:
        yield b"begin"
        while not pid.exists() or not pid.read_text().strip():
            yield b"."
        raise ValueError("changed")

    with pytest.raises(ValueError, match="changed"):
        run(["sh", "-c", f"echo $$ > {pid}; cat > /dev/null; sleep 600"], stdin=broken(), timeout_seconds=60)
    assert gone(int(pid.read_text()))


def test_output_without_end_takes_no_memory() -> None:
    """D4: a line of 100 MB, then one that is not UTF-8, then an honest one."""
    lines: list[str] = []
    code = (
        "import sys; o = sys.stdout.buffer\n"
        "for _ in range(100): o.write(b'x' * 1_000_000)\n"
        "o.write(b'\\n\\xff\\xfe\\nhonest\\n')"
    )
    tracemalloc.start()
    try:
        run(python(code), timeout_seconds=60, on_line=lines.append)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(lines[0]), *lines[1:]] == [MAX_LINE_LENGTH + 1, "\ufffd\ufffd", "honest"]
    assert peak < 4_000_000


INTERRUPTED = """
import sys
from mlimg.engine.command import run
print("ready", flush=True)
try:
    run(["sh", "-c", "trap 'exit 0' INT; echo $$; sleep 600 & echo $!; wait"], timeout_seconds=60,
        on_line=lambda line: print(line, flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_the_program_within_two_seconds() -> None:
    """D12."""
    with subprocess.Popen(python(INTERRUPTED), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        pids = [int(process.stdout.readline()), int(process.stdout.readline())]
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - started < 2
    assert all(gone(pid) for pid in pids)
    assert process.returncode == 0


def test_the_moment_to_stop_can_be_put_off_for_a_second() -> None:
    asked = 0

    def settled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(CommandFailed):
        run(["sleep", "600"], timeout_seconds=0.2, settled=settled)
    assert asked == 4
    started = time.monotonic()
    with pytest.raises(CommandFailed):
        run(["sleep", "600"], timeout_seconds=0.2, settled=lambda: False)
    assert time.monotonic() - started < 2
