"""A package that has an index of its own comes from there and from nowhere else."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.engines import Engine
from tests.support.projects import Project
from tests.support.torch_index import TorchBuilds, package_index

# PyPI has newer versions of it, which would win if it were asked.
PACKAGE, VERSION = "iniconfig", "0.0.1"


@pytest.fixture
def project(engine_host: str, base_image: str, tmp_path: Path, user_cache: Path) -> Project:
    return Project(tmp_path / "project", Engine.at(engine_host), base_image, user_cache)


def test_a_package_comes_from_its_own_index_and_from_nowhere_else(project: Project, tmp_path: Path) -> None:
    wheels, keys = tmp_path / "wheels", tmp_path / "keys"
    wheels.mkdir()
    keys.mkdir()
    write_wheel(wheels, PACKAGE, VERSION)
    authority = Authority.make(keys)
    trust = {"MLIMG_CA_BUNDLE": str(authority.bundle)}
    with project, package_index(wheels, authority, project.engine) as url:
        project.set(server__requirements=[PACKAGE], build={"indexes": {PACKAGE: url}})
        built = project.build("load", environ=trust)
        server = built.release["server"]["reference"]
        assert installed(project.engine, server)[PACKAGE] == VERSION
        # What the index does not have is not looked for on PyPI.
        project.set(server__requirements=[f"{PACKAGE}>=1"], server__version="1.1")
        failed = project.build("load", environ=trust)
        assert failed.status == 14
        assert PACKAGE in failed.stderr


def test_a_server_with_pytorch_has_nothing_of_cuda(
    project: Project, torch_builds: TorchBuilds, torch_base: str
) -> None:
    with project:
        del project.spec["server"]["code"]
        project.set(server__template="pytorch", server__base=torch_base)
        built = project.mlimg(
            "build", "--json", "--only", "server", *torch_builds.settings, environ=torch_builds.environ
        )
        packages = installed(project.engine, built.release["server"]["reference"])
    assert packages["torch"].endswith("+cpu")
    assert not [name for name in packages if name.startswith(("nvidia", "cuda", "triton"))]


def installed(engine: Engine, server: str) -> dict[str, str]:
    """The packages of a server image, and their versions."""
    listing = "{d.name.lower(): d.version for d in m.distributions()}"
    code = f"import importlib.metadata as m, json; print(json.dumps({listing}))"
    listed = engine.docker("run", "--rm", "--entrypoint", "/opt/venv/bin/python", server, "-c", code)
    packages: dict[str, str] = json.loads(listed)
    return packages


def write_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with one empty module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
