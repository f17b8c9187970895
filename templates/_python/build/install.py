"""Installs requirements.txt into /opt/venv and leaves it as the tree /layers/deps. Runs in the build stage."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import stage
from get_uv import get_uv
from trim import trim

SECRETS = Path("/run/secrets")
CACHE = Path("/var/cache/mlimg")
VENV = Path("/opt/venv")
TREE = Path("/layers/deps")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SOURCES = Path(__file__).with_name("pyproject.toml")  # there when packages have indexes of their own


def main():
    if sys.version_info < (3, 11):  # noqa: UP036 (the base is anybody's)
        sys.exit(f"the base image has Python {sys.version.split()[0]}, and mlimg's runtime needs 3.11 or newer")
    _use_secret("ca_bundle", "SSL_CERT_FILE")
    _use_secret("netrc", "NETRC")
    with tempfile.TemporaryDirectory() as folder:
        uv = Path(folder, "uv")
        get_uv(os.environ["INDEX"], CACHE, uv)
        _run(uv, "venv", "--python", sys.executable, VENV)
        sources = ["--requirements", SOURCES] if SOURCES.exists() else []
        _run(uv, "pip", "install", "--python", VENV / "bin/python", "--requirements", REQUIREMENTS, *sources)
    for packages in VENV.glob("lib/python3*/site-packages"):
        trim(packages)
    target = TREE / VENV.relative_to("/")
    target.parent.mkdir(parents=True)
    shutil.move(VENV, target)
    stage.compile_sources(TREE)
    stage.normalise(TREE)


def _run(uv, *arguments):
    settings = {
        "UV_CACHE_DIR": str(CACHE / "uv"),
        "UV_DEFAULT_INDEX": os.environ["INDEX"],
        "UV_LINK_MODE": "copy",  # the cache is another file system
        "UV_NO_CONFIG": "1",
        "UV_NO_INSTALLER_METADATA": "1",  # what is installed does not depend on where it was cached
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    result = subprocess.run([str(uv), *map(str, arguments)], env={**os.environ, **settings}, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def _use_secret(name, variable):
    path = SECRETS / name
    if path.is_file() and path.stat().st_size:
        os.environ[variable] = str(path)


if __name__ == "__main__":
    main()
