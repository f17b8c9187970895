"""The peak memory of every command that touches a 2 GiB model.

`--sparse-gib 20` weighs pushes of a model of 20 GiB instead: one sparse file, which takes no room, read and hashed like
any other, into a registry that throws it away. No engine is asked. (`fetch.py --mib` weighs fetches.)
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import MLIMG, PYTHON, Row, run, table
from places import sink
from project import ROOT, base_image, project

MODEL_BYTES = 2 * 1024**3
BAR_MIB = 200
PUSH_BAR_MIB = 150

COMMANDS = {
    "check": ["check"],
    "plan": ["plan", "--pattern", "in-image"],
    "build in-image": ["build", "--pattern", "in-image"],
    "build in-image again": ["build", "--pattern", "in-image"],
    "build load": ["build", "--pattern", "load"],
    "render in-image": ["render", "--pattern", "in-image", "-o", "rendered"],
    "inspect": ["inspect"],
    "clean": ["clean"],
}
NO_ENGINE = "unix:///nowhere/docker.sock"
# In a process of its own: the peak of a child begins with that of the process that started it.
PUBLISH_SERVER = """\
import sys
from pathlib import Path
from tests.support.published import publish_server, write_project
write_project(Path(), sys.argv[1])
publish_server(Path())
"""


def commands() -> Iterator[Row]:
    """Every command, with the local engine."""
    with project(model_bytes=MODEL_BYTES, base=base_image()) as folder:
        for title, arguments in COMMANDS.items():
            done = run([MLIMG, *arguments], cwd=folder)
            yield Row(title, done.peak_bytes / 2**20, BAR_MIB, "MiB", f"{done.seconds:.1f} s")
            shutil.rmtree(folder / "rendered", ignore_errors=True)


def sparse_push(pattern: str, size_bytes: int) -> Row:
    """One push, by somebody who has never seen the model, to a registry that has nothing but the server."""
    with sink() as place, TemporaryDirectory(prefix="mlimg-bench.") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        with (folder / "model" / "weights.bin").open("wb") as file:
            file.truncate(size_bytes)
        run([PYTHON, "-c", PUBLISH_SERVER, place.host], cwd=folder, env={"PYTHONPATH": str(ROOT)})
        before = place.blob_bytes()
        done = run([MLIMG, "build", "--pattern", pattern, "--push"], cwd=folder, env={"DOCKER_HOST": NO_ENGINE})
        assert place.blob_bytes() - before > size_bytes, "it was not sent"
    speed = f"{done.seconds:.1f} s, {size_bytes / 2**20 / done.seconds:.0f} MiB/s"
    return Row(f"push {pattern}, {size_bytes / 2**30:g} GiB", done.peak_bytes / 2**20, PUSH_BAR_MIB, "MiB", speed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparse-gib", type=int, help="length of a model that is pushed, instead of all commands")
    asked = parser.parse_args()
    if asked.sparse_gib:
        rows = [sparse_push(pattern, asked.sparse_gib * 2**30) for pattern in ("in-image", "load")]
    else:
        rows = list(commands())
    table(rows)
