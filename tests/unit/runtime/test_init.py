"""Process 1, tried as any other process. Bar: G14."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def supervise(before: str, *command: str) -> int:
    program = f"import os, signal\nfrom mlimg.runtime import init\n{before}\ninit.run({list(command)!r})"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=False).returncode


def test_it_ends_with_the_status_of_its_child() -> None:
    assert supervise("", "sh", "-c", "exit 7") == 7
    assert supervise("", "sh", "-c", "kill -KILL $$") == 137
    assert supervise("", "not-there-at-all") == 127


def test_a_signal_that_came_before_it_waits_reaches_the_child() -> None:
    early = "signal.pthread_sigmask(signal.SIG_BLOCK, init.FORWARDED); os.kill(os.getpid(), signal.SIGTERM)"
    assert supervise(early, "sleep", "20") == 143
