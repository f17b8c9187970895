"""The build's own decisions, with a `docker` command that a test wrote."""

import json
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mlimg.engine import buildx
from mlimg.engine.docker import Engine, EngineImage
from mlimg.plan import BaseImage, Platform
from mlimg.render import Context, ExpectedConfig
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError, LocalIOError, MlimgError
from mlimg.runtime.reference import ImageReference
from tests.unit.engine.conftest import StubEngine

BASE, ADDED = Digest.of(b"base"), Digest.of(b"added")
BUILT = "sha256:" + "ab" * 32
CANARY = "canary-8f0c1d77a2"

DOCKER = """\
#!/bin/sh
if [ "$2" = version ]; then echo 'github.com/docker/buildx v0.13.1'; exit; fi
for word in "$@"; do printf '%s\\n' "$word"; done >> {folder}/argv
cat > {folder}/stdin
while [ "$1" != --metadata-file ]; do shift; done
{body}
"""
BUILDS = 'printf \'{"containerimage.digest": "' + BUILT + '"}\' > "$2"'


class Steps:
    def advance(self, size_bytes: int) -> None: ...
    def update(self, text: str) -> None: ...


@pytest.fixture
def base() -> BaseImage:
    private = ImageReference("mlimg.local", "base", "121212121212")
    return BaseImage("python:3.13", f"python@{Digest.of(b'm')}", Digest.of(b"i"), (BASE,), private)


def described(**config: Any) -> dict[str, Any]:
    return {
        "Id": BUILT,
        "Os": "linux",
        "Architecture": "amd64",
        "Config": {"User": "10001:0", "Env": ["A=b"], "Labels": {"l": "m"}, "ExposedPorts": {"8080/tcp": {}}} | config,
        "RootFS": {"Layers": [BASE.text, ADDED.text]},
    }


class Docker:
    """The stub engine and the `docker` command before it."""

    def __init__(self, stub: StubEngine, folder: Path) -> None:
        self.stub = stub
        self.folder = folder
        self.engine = Engine.connect(stub.env | {"PATH": f"{folder}:/usr/bin:/bin"}, lambda _host: None)

    def does(self, body: str) -> None:
        path = self.folder / "docker"
        path.write_text(DOCKER.replace("{folder}", str(self.folder)).replace("{body}", body))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def argv(self) -> list[str]:
        return (self.folder / "argv").read_text().splitlines()

    def build(self, base: BaseImage, **changes: Any) -> EngineImage:
        expected = ExpectedConfig("10001:0", {"A": "b"}, (), (), ("8080/tcp",), {"l": "m"})
        settings: dict[str, Any] = {"secrets": {}, "ca_bundle": None, "tags": ["s:1"], "timeout_seconds": 60} | changes
        return buildx.build(
            self.engine,
            Context("FROM x\n", (), Digest.of(b"key"), expected),
            platform=Platform("linux", "amd64"),
            base=base,
            report=Steps(),
            **settings,
        )


@pytest.fixture
def docker(stub: StubEngine, tmp_path: Path) -> Iterator[Docker]:
    docker = Docker(stub, tmp_path)
    docker.does(BUILDS)
    stub.answers[f"GET /images/{BUILT}/json"] = described()
    stub.answers[f"POST /images/{BUILT}/tag"] = {}
    yield docker
    docker.engine.close()


def tagged(stub: StubEngine) -> list[str]:
    return [asked for asked in stub.asked if asked.startswith("POST") and "/tag?" in asked]


def test_the_builder_is_told_all_it_must_know(docker: Docker, base: BaseImage, tmp_path: Path) -> None:
    secret = tmp_path / "my,netrc"
    secret.write_text(CANARY)
    docker.build(base, secrets={"netrc": secret}, ca_bundle=tmp_path / "ca.pem", no_cache=True)
    argv = docker.argv()
    options = dict(pairwise(argv))
    assert options["--builder"] == "default"
    assert {"--load", "--provenance=false", "--sbom=false", "--no-cache"} <= set(argv)
    assert options["--build-arg"] == "SOURCE_DATE_EPOCH=0"
    assert options["--build-context"] == f"{base.pinned}=docker-image://mlimg.local/base:121212121212"
    assert options["--tag"].startswith("mlimg.local/build:")
    assert f'id=netrc,"src={secret}"' in argv
    assert f'id=ca_bundle,"src={tmp_path}/ca.pem"' in argv
    assert argv[-1] == "-"
    assert CANARY not in "".join(argv)  # I10
    assert (tmp_path / "stdin").stat().st_size > 0


def test_the_temporary_tag_is_never_used_twice_and_is_taken_away(docker: Docker, base: BaseImage) -> None:
    docker.build(base)
    docker.build(base)
    names = [word for word in docker.argv() if word.startswith("mlimg.local/build:")]
    assert len(set(names)) == 2
    for name in names:
        assert any(asked.startswith(f"DELETE /v1.44/images/{name}") for asked in docker.stub.asked)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"User": "10001"}, "User is '10001', not '10001:0'"),
        ({"User": ""}, "User is ''"),
        ({"Env": ["A=c"]}, "Env A is another value"),
        ({"Env": []}, "Env A is not set"),
        ({"Labels": {"l": "n"}}, "label l is another value"),
        ({"Labels": None}, "label l is not set"),
        ({"ExposedPorts": None}, "port 8080/tcp is not exposed"),
    ],
)
def test_an_image_that_drifted_from_the_plan_gets_no_tag(
    docker: Docker, base: BaseImage, config: dict[str, Any], told: str
) -> None:
    """D11."""
    docker.stub.answers[f"GET /images/{BUILT}/json"] = described(**config)
    with pytest.raises(EngineError) as failed:
        docker.build(base)
    assert told in failed.value.message
    assert not tagged(docker.stub)
    assert any(asked.startswith("DELETE") for asked in docker.stub.asked)
    docker.stub.answers[f"GET /images/{BUILT}/json"] = described()
    docker.build(base)
    assert tagged(docker.stub)


@pytest.mark.parametrize("layers", [[ADDED, BASE], [BASE], []])
def test_an_image_on_another_base_gets_no_tag(docker: Docker, base: BaseImage, layers: list[Digest]) -> None:
    """C6, D11."""
    docker.stub.answers[f"GET /images/{BUILT}/json"] = described() | {"RootFS": {"Layers": [d.text for d in layers]}}
    with pytest.raises(EngineError, match="layer"):
        docker.build(base)
    assert not tagged(docker.stub)


@pytest.mark.parametrize("body", ["true", "echo '{}' > $2", "echo no > $2", "echo '[\"x\"]' > $2"])
def test_a_builder_that_does_not_say_what_it_built_is_not_guessed_at(
    docker: Docker, base: BaseImage, body: str
) -> None:
    docker.does(body)
    with pytest.raises(EngineError, match="which image"):
        docker.build(base)
    assert not tagged(docker.stub)


def test_output_that_is_noise_is_survived(docker: Docker, base: BaseImage) -> None:
    """D4."""
    docker.does("head -c 10000000 /dev/zero; printf '\\n\\377\\376#1 \\n#x\\n#1 [a] RUN\\n'; " + BUILDS)
    assert docker.build(base).id == BUILT


def test_without_buildx_the_way_to_get_it_is_told(docker: Docker, base: BaseImage) -> None:
    path = docker.folder / "docker"
    path.write_text("#!/bin/sh\necho \"docker: 'buildx' is not a docker command.\" >&2; exit 1\n")
    with pytest.raises(EngineError, match="no buildx") as failed:
        docker.build(base)
    assert "docker-buildx" in failed.value.hint


def test_without_the_docker_command_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be started"):
        buildx.version({"PATH": str(tmp_path)})


def test_a_scratch_folder_that_cannot_be_made_is_a_local_failure(
    docker: Docker, base: BaseImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4."""
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    with pytest.raises(LocalIOError, match="/nonexistent"):
        docker.build(base)
    assert not (docker.folder / "argv").exists(), "the builder was asked"
    monkeypatch.delenv("TMPDIR")
    docker.build(base)


@pytest.mark.parametrize("variable", ["HOME", "DOCKER_CONFIG", "BUILDX_CONFIG"])
def test_a_builder_that_cannot_keep_its_notes_at_home_keeps_them_for_the_build(
    docker: Docker, base: BaseImage, variable: str
) -> None:
    """I6: without it, buildx builds nothing where the home is read-only."""
    docker.does(f'echo "$BUILDX_CONFIG" > {docker.folder}/notes; ' + BUILDS)
    docker.engine.environ[variable] = "/proc/none"
    docker.build(base)
    assert "mlimg-build-" in (docker.folder / "notes").read_text()
    docker.engine.environ[variable] = str(docker.folder)
    docker.build(base)
    assert "mlimg-build-" not in (docker.folder / "notes").read_text()


def test_a_base_that_the_builder_cannot_fetch_is_a_remote_failure(docker: Docker, base: BaseImage) -> None:
    """D8."""
    docker.does("echo '#2 [internal] load metadata for r.example.com/a:1'; echo '#2 ERROR: r/a:1: not found'; exit 1")
    with pytest.raises(MlimgError) as failed:
        docker.build(base)
    assert failed.value.status == 16
    assert "r.example.com/a:1" in failed.value.message


def test_an_engine_lost_in_the_build_is_told_in_the_builders_words(docker: Docker, base: BaseImage) -> None:
    """D3."""
    words = "failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF"
    docker.does(f"echo '#2 [1/2] RUN x'; echo 'ERROR: {words}'; exit 1")
    with pytest.raises(EngineError, match="Unavailable") as failed:
        docker.build(base)
    assert json.dumps(failed.value.log)
