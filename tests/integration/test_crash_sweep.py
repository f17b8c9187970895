"""E12, I3: killed at any call, a push, a publication and a fetch leave nothing half-visible, and the next run finishes.

A look at a few points; `tests/bench/crash_sweep.py` has all of them, and says what a point is.
"""

import re
import subprocess
import sys

import pytest

from tests.integration.conftest import unavailable
from tests.support.crash import can_compile
from tests.support.servers import ROOT


@pytest.mark.parametrize("command", ["directory", "fetch", "in-image", "load", "newer-server"])
def test_killed_at_any_call_nothing_is_half_published_and_the_next_run_finishes(command: str) -> None:
    if not can_compile():
        unavailable("the crash sweep needs Linux and a C compiler")
    done = subprocess.run(
        [sys.executable, "tests/bench/crash_sweep.py", "--stride", "40", "--only", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    points = re.search(r"killed at (\d+) points", done.stdout)
    assert points, done.stdout
    assert int(points[1]) >= 3
