"""G10 on the real server: told to stop at any moment of its start, it is gone in two seconds and nothing is lost.

The moments are spread by chance, always the same ones; `tests/bench/repeat.py` has the long run.
"""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.faults import Fault, FaultServer
from tests.support.payloads import payload, publish_in_memory
from tests.support.registry import MemoryRegistry
from tests.support.rounds import rounds
from tests.support.servers import ECHO, running, server_folder

# The layers arrive one after the other over some seconds: moments fall before, into and between them.
FILES = {f"part-{number}.bin": random.Random(number).randbytes(300_000) for number in range(4)}
BYTES_PER_SECOND = 400_000
LONGEST_SECONDS = 4.0


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryRegistry:
    """A registry with a model of several layers."""
    monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", 100_000)
    registry = MemoryRegistry()
    publish_in_memory(registry, payload(FILES))
    return registry


def whole(folder: Path) -> list[Path]:
    """Versions that are visible under their final name, each checked byte by byte."""
    found = [path.parent for path in folder.rglob("mlimg.manifest") if ".mlimg-scratch" not in path.parts]
    for version in found:
        assert {name: (version / name).read_bytes() for name in FILES} == FILES
    visible = [path for path in folder.rglob("part-*.bin") if ".mlimg-scratch" not in path.parts]
    assert {path.parent for path in visible} <= set(found), "files are visible without their manifest"
    return found


def test_g10_a_server_that_is_stopped_at_any_moment_leaves_what_the_next_takes_up(
    memory: MemoryRegistry, tmp_path: Path
) -> None:
    chance = random.Random(10)
    server = server_folder(tmp_path / "server", ECHO)
    statuses, kept = [], 0
    for number in range(rounds(5)):
        models = tmp_path / f"models-{number}"
        slow = Fault("GET", "blobs", times=99, bytes_per_second=BYTES_PER_SECOND)
        with FaultServer(memory, slow) as registry:
            environ = {
                "MLIMG_SERVER_DIR": str(server),
                "MLIMG_MODEL_DIR": str(models),
                "MLIMG_MODEL": f"oci://{registry.host}/models/digits:3",
            }
            which = chance.choice([signal.SIGTERM, signal.SIGINT])
            with running(environ) as serving:
                time.sleep(chance.uniform(0.5, LONGEST_SECONDS))
                sent = serving.signal(which)
                code, errors = serving.end()
                assert time.monotonic() - sent < 2
            statuses.append(code)
            # 0 once it serves; by the signal itself in the interpreter's own first moments.
            assert code in {128 + which, 0, -which}, errors
            assert "Traceback" not in errors or code == -which
            whole(models)
            before = sum(path.stat().st_size for path in models.rglob("part-*") if path.is_file())
            kept += before > 0

            slow.times = slow.fired  # the line is good now
            asked = len(registry.matching("GET", "blobs"))
            with running(environ) as serving:
                serving.wait_until(200)
                serving.signal()
                assert serving.end()[0] == 0
            again = registry.matching("GET", "blobs")[asked:]
            if code == 0:
                assert not again, "a whole model was fetched again"
        assert len(whole(models)) == 1
        assert not [path for path in models.rglob("*") if ".mlimg-scratch" in path.parts and path.suffix == ".bin"]
    assert any(code > 0 for code in statuses), f"no moment hit a fetch: {statuses}"
    assert kept, "no moment came after the first bytes"
