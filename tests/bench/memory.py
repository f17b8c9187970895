"""The peak memory of every command that touches a 2 GiB model."""

import shutil

from measure import MLIMG, Row, run, table
from project import base_image, project

MODEL_BYTES = 2 * 1024**3
BAR_MIB = 200

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

if __name__ == "__main__":
    rows = []
    with project(model_bytes=MODEL_BYTES, base=base_image()) as folder:
        for title, arguments in COMMANDS.items():
            done = run([MLIMG, *arguments], cwd=folder)
            rows.append(Row(title, done.peak_bytes / 2**20, BAR_MIB, "MiB", f"{done.seconds:.1f} s"))
            shutil.rmtree(folder / "rendered", ignore_errors=True)
    table(rows)
