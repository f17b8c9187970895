"""What the sklearn server image adds to its base and its installed wheels, bytecode apart."""

import json
import subprocess

from measure import MLIMG, Row, run, table
from project import ROOT, base_image

# Runs inside the image: what lies under the folders that mlimg fills, by the same count as the image's layers.
COUNT = """
import os, sys
def size(root, keep):
    return sum(
        os.lstat(os.path.join(d, f)).st_size for d, _, fs in os.walk(root) for f in fs if keep(os.path.join(d, f))
    )
packages = next(p for p in sys.path if p.endswith("site-packages"))
compiled = lambda p: p.endswith(".pyc")
print(size(packages, lambda p: not compiled(p)), size("/opt", compiled))
"""


def image_bytes(reference: str) -> int:
    shown = subprocess.run(["docker", "image", "inspect", reference], check=True, capture_output=True, text=True)
    return int(json.loads(shown.stdout)[0]["Size"])


if __name__ == "__main__":
    base = base_image()
    done = run(
        [
            MLIMG,
            "build",
            str(ROOT / "examples" / "digits"),
            "--pattern",
            "load",
            "--json",
            "--set",
            f"server.base={base}",
        ]
    )
    server = json.loads(done.stdout)["server"]["reference"]
    counted = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "/opt/venv/bin/python", server, "-c", COUNT],
        check=True,
        capture_output=True,
        text=True,
    )
    wheels, bytecode = (int(number) for number in counted.stdout.split())
    added = image_bytes(server) - image_bytes(base) - wheels - bytecode
    spread = (
        f"image {image_bytes(server) / 2**20:.0f} MiB, wheels {wheels / 2**20:.0f}, bytecode {bytecode / 2**20:.0f}"
    )
    table([Row("added over base and wheels", added / 2**20, 20, "MiB", spread)])
