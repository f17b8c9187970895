"""Templates of an installed mlimg: a wheel has them inside the package, where a checkout has them beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from mlimg.render import render
from tests.support.plans import base_image, server_plan

ROOT = Path(__file__).resolve().parents[2]
KEYS = (
    "import mlimg\n"
    "from mlimg.render import render\n"
    "from tests.support.plans import base_image, server_plan\n"
    "print(mlimg.__file__, *(render(server_plan(name), base_image()).key for name in ('python', 'sklearn')))\n"
)


def test_a_wheel_renders_the_same_servers_as_the_checkout(tmp_path: Path) -> None:
    uv = [str(Path(sys.executable).with_name("uv")), "build", "--quiet", "--wheel", "--out-dir", str(tmp_path)]
    subprocess.run([*uv, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "__pycache__" in name]
        archive.extractall(installed)
    (installed / "tests").symlink_to(ROOT / "tests")
    done = subprocess.run(
        [sys.executable, "-P", "-B", "-c", KEYS],
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    imported, *keys = done.stdout.split()
    assert imported == str(installed / "mlimg" / "__init__.py"), "the checkout is what was tried"
    assert keys == [render(server_plan(name), base_image()).key.text for name in ("python", "sklearn")]
