"""Real servers for the integration tests.

* ``base_image``: the reference of a slim Python base that the engines have.
* ``registry``, ``registry_auth``, ``registry_small``: ``host:port`` of an empty registry; the second asks for alice and
  secret, the disk of the third is soon full.
* ``engine``: runs a test once on each image store; ``engine_host`` and ``containerd_engine`` are single hosts.
* ``project``: a folder to build releases from, whose names are local; ``published`` has its names in ``registry``.
* ``access_log``: what that registry was asked for, of one project.
* ``torch_builds``: PyTorch without CUDA, and ``torch_base``, a base for it.
* ``swift`` and ``azurite``: object stores on loopback, each with one empty bucket or container.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import urllib3
from pytest_docker.plugin import Services

from tests.support.azurite import Azurite
from tests.support.azurite import azurite as running_azurite
from tests.support.engines import (
    CACHE,
    PROJECT_PREFIX,
    Engine,
    default_host,
    remove_projects_of_dead_runs,
    tool,
)
from tests.support.projects import Project, RegistryLog, output
from tests.support.swift import Swift
from tests.support.swift import swift as running_swift
from tests.support.torch_index import TorchBuilds, public_builds, served_wheel, wheel_at_hand

LOCAL_NAMES = "mlimg.local/"
# A thousand processes of ours are started here: without bytecode each would compile what it imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "extensive: a variation that `make examples` tries and `make test` does not")


@pytest.fixture(scope="session")
def engine_host() -> str:
    """Where the machine's own engine listens."""
    return default_host()


@pytest.fixture(scope="session")
def base_image(engine_host: str) -> str:
    """The reference of the slim Python base image in the machine's engine."""
    return tool("base-image.sh", host=engine_host)


@pytest.fixture(scope="session")
def torch_builds(engine_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchBuilds]:
    """PyTorch without CUDA."""
    if public := public_builds():
        yield public
    elif wheel := wheel_at_hand():
        with served_wheel(wheel, Engine.at(engine_host), tmp_path_factory.mktemp("torch")) as builds:
            yield builds
    else:
        unavailable("PyTorch without CUDA: its index cannot be reached, and pip has no wheel at hand")


@pytest.fixture(scope="session")
def torch_base(engine_host: str, torch_builds: TorchBuilds, base_image: str) -> str:
    """The reference of a base image whose Python can have `torch_builds`."""
    python = torch_builds.python
    return tool("base-image.sh", "--python", python, host=engine_host) if python else base_image


@pytest.fixture(scope="session")
def containerd_engine(engine_host: str, base_image: str) -> Iterator[str]:
    """Where an engine with the containerd image store listens, with the base image in it."""
    if Engine.at(engine_host).store == "containerd":
        yield engine_host
        return
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        unavailable("a second engine, with the containerd image store, needs Linux and root")
    tool("containerd-engine.sh", "sweep")
    name = str(os.getpid())
    host = tool("containerd-engine.sh", "start", name)
    try:
        # Not pulled: both engines are to have the same base.
        tool("base-image.sh", *(["--local"] if base_image.startswith(LOCAL_NAMES) else []), host=host)
        yield host
    finally:
        tool("containerd-engine.sh", "stop", name)


@pytest.fixture(scope="session")
def graph_engine(engine_host: str) -> str:
    """Where an engine with the graph drivers' image store listens."""
    if Engine.at(engine_host).store != "graph":
        unavailable("this engine has the containerd image store only")
    return engine_host


@pytest.fixture(scope="session", params=["graph", "containerd"])
def engine(request: pytest.FixtureRequest, base_image: str) -> Engine:
    """Each image store in turn, with the base image in it."""
    host: str = request.getfixturevalue(f"{request.param}_engine")
    return Engine(host, request.param)


@pytest.fixture(scope="session")
def docker_compose_file(base_image: str) -> Iterator[str]:
    """The registries, told what to build from."""
    tool("test-packages.sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLIMG_TEST_BASE", base_image)
        patch.setenv("MLIMG_TEST_BINARIES", str(CACHE / "bin"))
        yield str(Path(__file__).with_name("docker-compose.yaml"))


@pytest.fixture(scope="session")
def docker_compose_project_name() -> str:
    """A name of this run's own, after removing what runs that were killed have left."""
    remove_projects_of_dead_runs()
    return f"{PROJECT_PREFIX}{os.getpid()}"


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    """Built when needed."""
    return ["up --build --wait --quiet-pull"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    """Nothing in a registry is worth waiting for."""
    return ["down --volumes --timeout 0"]


@pytest.fixture(scope="session")
def registry(docker_services: Services) -> str:
    """``host:port`` of a registry that anybody may read, write and delete in."""
    return answering(docker_services, "registry", 200)


@pytest.fixture(scope="session")
def registry_small(docker_services: Services) -> str:
    """``host:port`` of a registry whose disk is full after 8 MiB."""
    return answering(docker_services, "registry-small", 200)


@pytest.fixture(scope="session")
def registry_auth(docker_services: Services) -> str:
    """``host:port`` of a registry that asks for user ``alice`` and password ``secret``."""
    return answering(docker_services, "registry-auth", 401)


@pytest.fixture(scope="session")
def memory_folder() -> Iterator[Path]:
    """A folder for the data of servers, in memory where that can be."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="mlimg-test-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def swift(memory_folder: Path) -> Iterator[Swift]:
    """A real S3: OpenStack Swift, with one bucket."""
    if not Path("/proc").exists():
        unavailable("OpenStack Swift runs on Linux only")
    tool("test-packages.sh")
    (memory_folder / "swift").mkdir()
    with running_swift(memory_folder / "swift") as store:
        yield store


@pytest.fixture(scope="session")
def azurite(memory_folder: Path) -> Iterator[Azurite]:
    """Azure Blob Storage as Microsoft emulates it, with one container."""
    tool("test-packages.sh")
    (memory_folder / "azurite").mkdir()
    with running_azurite(memory_folder / "azurite") as store:
        yield store


@pytest.fixture(scope="session")
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache folder, which outlives projects as it does for a user."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def project(engine: Engine, base_image: str, tmp_path: Path, user_cache: Path) -> Iterator[Project]:
    """A project whose names are in no registry."""
    with Project(tmp_path / "project", engine, base_image, user_cache) as project:
        yield project


@pytest.fixture
def published(engine: Engine, base_image: str, registry: str, tmp_path: Path, user_cache: Path) -> Iterator[Project]:
    """A project whose image, server and store are in the registry; its spec writes the platform."""
    with Project(tmp_path / "published", engine, base_image, user_cache, registry) as project:
        yield project


@pytest.fixture
def access_log(docker_compose_project_name: str, engine_host: str, registry: str) -> Callable[[Project], RegistryLog]:
    """Gives the log of what the registry was asked for, of one project."""
    labels = {"com.docker.compose.project": docker_compose_project_name, "com.docker.compose.service": "registry"}
    filters = [word for name, value in labels.items() for word in ("--filter", f"label={name}={value}")]
    container = output("docker", "--host", engine_host, "ps", "--quiet", *filters)
    return lambda project: RegistryLog(engine_host, container, project.name)


def answering(services: Services, name: str, status: int) -> str:
    """``host:port`` of a registry, once it answers. It is asked from here: a health check would start a program in each
    of them twice a second for as long as the tests run.
    """
    host = f"127.0.0.1:{services.port_for(name, 5000)}"

    def answers() -> bool:
        try:
            return urllib3.request("GET", f"http://{host}/v2/", timeout=2, retries=False).status == status
        except urllib3.exceptions.HTTPError:
            return False

    services.wait_until_responsive(answers, timeout=60, pause=0.1)
    return host


def unavailable(reason: str) -> NoReturn:
    """Skip on a laptop, fail in CI: nothing is skipped there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
