"""A second build with only the model changed: no image build starts, and only the changed layers move."""

import json

from measure import MLIMG, Row, run, table
from project import base_image, project, write_random

LARGE_BYTES = 256 * 1024**2
SMALL_BYTES = 1024**2

if __name__ == "__main__":
    with project(model_bytes=LARGE_BYTES, base=base_image()) as folder:
        run([MLIMG, "build", "--pattern", "in-image"], cwd=folder)
        write_random(folder / "model" / "head.bin", SMALL_BYTES)
        build = [MLIMG, "build", "--pattern", "in-image", "--set", "model.version=2", "--json"]
        done = run(build, cwd=folder)
        release = json.loads(done.stdout)
        built = float(release["server"]["how"] == "built")
        moved_mib = release["image"]["moved_bytes"] / 2**20
    table(
        [
            Row("image builds started", built, 0, "builds"),
            Row("model bytes moved, 1 MiB of 257 MiB changed", moved_mib, 2, "MiB", f"{done.seconds:.1f} s"),
        ]
    )
