"""A build whose files change under its hands, through the console script: C8 and B2 of the fault matrix."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.cli.test_main import write_spec
from tests.unit.engine.conftest import StubEngine

MLIMG = Path(sys.executable).with_name("mlimg")
# Long enough to write a file in, however slow the machine is.
HOLD = "inject=read:delay_exit=3000000:when=1"


def build(folder: Path, stub: StubEngine, held: Path, content: bytes | None) -> tuple[int, str]:
    """Build, and write `content` to `held` while the process stands in its first read of it."""
    trace = folder.parent / "trace"
    strace = ["strace", "-f", "-qq", "-o", str(trace), "-P", str(held), "-e", "trace=openat,read", "-e", HOLD]
    with subprocess.Popen(
        [*strace, str(MLIMG), "build", "--pattern", "in-image"],
        cwd=folder,
        env=os.environ | stub.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (trace.exists() and "openat(" in trace.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)  # between the opening and the read lies nothing slow
        if content is not None:
            held.write_bytes(content)
        out, err = process.communicate(timeout=60)
    assert "(DELAYED)" in trace.read_text(), "the fault did not fire"
    assert out == ""
    return process.returncode, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    write_spec(folder)
    return folder


@pytest.mark.parametrize("change", [b"\n# more", b""], ids=["grows", "same size"])
def test_server_code_that_changes_while_it_is_read_is_13_and_the_engine_is_asked_nothing(
    folder: Path, stub: StubEngine, change: bytes
) -> None:
    """C8."""
    handler = folder / "serve" / "handler.py"
    before = handler.read_bytes()
    status, told = build(folder, stub, handler, before.replace(b"load", b"LOAD") + change)
    assert status == 13
    assert told.startswith("error: ")
    assert "handler.py: changed while it was read" in told
    assert not [asked for asked in stub.asked if not asked.startswith("GET ")]


def test_server_code_that_stays_is_sent_to_be_built(folder: Path, stub: StubEngine) -> None:
    """C8, the twin: as slow, unchanged; it fails later, as this engine has nothing in it."""
    status, told = build(folder, stub, folder / "serve" / "handler.py", None)
    assert "changed" not in told
    assert status not in {0, 13}
    assert "GET /version" in " ".join(stub.asked)
