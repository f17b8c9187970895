"""A project to measure with: a spec, and a model of as many bytes as asked."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]

SPEC = """\
image: mlimg.local/bench
server:
  template: python
  base: {base}
  code: ./serve
model:
  version: "1"
  source: ./model
"""

HANDLER = """\
def load(model_dir, options):
    return sum(path.stat().st_size for path in model_dir.iterdir())


def predict(model, inputs):
    return {name: values + model for name, values in inputs.items()}
"""


def base_image() -> str:
    """The base that the demo and the tests use."""
    script = ROOT / "tools" / "base-image.sh"
    return subprocess.run([script], check=True, capture_output=True, text=True).stdout.split()[-1]


@contextmanager
def project(*, model_bytes: int, base: str = "python:3.13-slim") -> Iterator[Path]:
    """A folder with `mlimg.yaml` and a model of random bytes, in memory where the machine has room there."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(prefix="mlimg-bench.", dir=shared if shared.is_dir() else None) as name:
        folder = Path(name)
        (folder / "mlimg.yaml").write_text(SPEC.format(base=base), encoding="utf-8")
        (folder / "serve").mkdir()
        (folder / "serve" / "handler.py").write_text(HANDLER, encoding="utf-8")
        (folder / "model").mkdir()
        write_random(folder / "model" / "weights.bin", model_bytes)
        yield folder


def write_random(path: Path, size_bytes: int) -> None:
    """Write bytes that do not compress."""
    with path.open("wb") as file:
        for start in range(0, size_bytes, 1 << 24):
            file.write(os.urandom(min(1 << 24, size_bytes - start)))
