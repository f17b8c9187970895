"""What the sklearn server image adds to its base and its wheels, and what it weighs against other servers' images.

python tests/bench/image_size.py            the first
python tests/bench/image_size.py --others   both: builds images with MLServer, BentoML and MLflow, for ten minutes
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import other_servers
from measure import MLIMG, Row, run, table
from project import ROOT, base_image

EXAMPLE = ROOT / "examples" / "digits"
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


def layers(reference: str) -> str:
    """The MiB of each layer that has one, the base first."""
    command = ["docker", "image", "history", "--human=false", "--format", "{{.Size}}", reference]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    sizes = [round(int(size) / 2**20) for size in reversed(shown.stdout.split())]
    return " + ".join(str(size) for size in sizes if size)


def build(base: str, pattern: str, image: str) -> str:
    """The reference of the digits example's image on a base: its `server`, or in-image the `image` with the model."""
    words = [MLIMG, "build", str(EXAMPLE), "--pattern", pattern, "--json", "--set", f"server.base={base}"]
    words += ["--set", "server.options.dataframes=false"]  # the digits are plain arrays
    reference: str = json.loads(run(words).stdout)[image]["reference"]
    return reference


def added() -> Row:
    """What is neither base nor wheels nor bytecode."""
    base = base_image()
    server = build(base, "load", "server")
    command = ["docker", "run", "--rm", "--entrypoint", "/opt/venv/bin/python", server, "-c", COUNT]
    counted = subprocess.run(command, check=True, capture_output=True, text=True)
    wheels, bytecode = (int(number) for number in counted.stdout.split())
    over = image_bytes(server) - image_bytes(base) - wheels - bytecode
    spread = (
        f"image {image_bytes(server) / 2**20:.0f} MiB, wheels {wheels / 2**20:.0f}, bytecode {bytecode / 2**20:.0f}"
    )
    return Row("added over base and wheels", over / 2**20, 20, "MiB", spread)


def ratios() -> list[Row]:
    """The in-image image against others' with the same model, all on one base of the newest Python that all have."""
    script = ROOT / "tools" / "base-image.sh"
    slim = subprocess.run([script, "--python", "3.11"], check=True, capture_output=True, text=True).stdout.split()[-1]
    ours = image_bytes(build(slim, "in-image", "image"))
    rows = []
    with TemporaryDirectory(prefix="mlimg-bench.") as name:
        folder = Path(name)
        base = other_servers.pip_base(slim, folder / "base")
        model = EXAMPLE / "model" / "model.joblib"
        builds = {
            "MLServer's packages alone": (other_servers.mlserver_packages, None),
            "MLServer's image, its Dockerfile's steps on Debian": (other_servers.mlserver, 1 / 3),
            "BentoML": (other_servers.bentoml, 1 / 2),
            "MLflow": (other_servers.mlflow, 1 / 2),
        }
        for other, (recipe, bar) in builds.items():
            image = recipe(model, base, folder / other)
            theirs = image_bytes(image)
            spread = f"{ours / 2**20:.0f} of {theirs / 2**20:.0f} MiB, theirs in layers of {layers(image)}"
            rows.append(Row(f"image, against {other}", ours / theirs, bar, "x", spread))
    return rows


if __name__ == "__main__":
    table([added(), *(ratios() if "--others" in sys.argv else [])])
