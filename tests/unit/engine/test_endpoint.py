"""Which engine is meant, and what is said when it does not answer."""

import gc
import json
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from mlimg.engine.docker import Engine
from mlimg.engine.endpoint import find_endpoint, greet
from mlimg.runtime.errors import EngineError
from tests.unit.engine.conftest import VERSION, StubEngine

# The SDK forgets its socket when nobody listens.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """Tracebacks hold the forgotten sockets: they go while their warning is expected."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def refused(environ: dict[str, str], **limits: float) -> EngineError:
    started = time.monotonic()
    with pytest.raises(EngineError) as failed:
        Engine.connect(environ, **limits)  # type: ignore[arg-type]
    assert time.monotonic() - started < 2
    assert failed.value.status == 14
    assert failed.value.hint
    return failed.value


def test_no_socket_is_told_at_once(tmp_path: Path) -> None:
    """D1."""
    error = refused({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert "no Docker Engine answers" in error.message
    assert "start Docker" in error.hint


def test_a_socket_nobody_listens_to_is_told_at_once(tmp_path: Path) -> None:
    """D1: what a daemon that was killed leaves."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert "no Docker Engine answers" in refused({"DOCKER_HOST": f"unix://{path}"}).message


def test_a_socket_that_may_not_be_opened_is_told_at_once(stub: StubEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """D1; the twin opens."""

    def deny(_: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", deny)
        error = refused(stub.env)
    assert "may not talk" in error.message
    assert "usermod" in error.hint
    Engine.connect(stub.env).close()


@pytest.mark.parametrize("host", ["unix//typo", "nonsense://host", "tcp://127.0.0.1:1", "tcp://", "ssh://nowhere"])
def test_an_address_that_is_none_is_told_at_once(host: str) -> None:
    """D1."""
    refused({"DOCKER_HOST": host})


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """A socket that takes every connection and says nothing."""
    path = tmp_path / "silent.sock"
    taken = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def take() -> None:
            try:
                while True:
                    taken.append(server.accept()[0])
            except OSError:
                pass

        thread = threading.Thread(target=take)
        thread.start()
        yield path
        assert taken, "nobody came: the fault did not fire"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in taken:
            connection.close()


def test_an_engine_that_says_nothing_is_given_up(silent: Path) -> None:
    """D2."""
    error = refused({"DOCKER_HOST": f"unix://{silent}"}, answer_seconds=0.5)
    assert "does not answer" in error.message


@pytest.mark.parametrize(
    ("versions", "spoken"),
    [
        ({"ApiVersion": "1.45", "MinAPIVersion": "1.24"}, "1.44"),
        ({"ApiVersion": "1.41", "MinAPIVersion": "1.12"}, "1.41"),
        ({"ApiVersion": "1.52", "MinAPIVersion": "1.44"}, "1.44"),
        ({"ApiVersion": "1.60", "MinAPIVersion": "1.50"}, "1.50"),
    ],
)
def test_the_version_spoken_is_one_that_both_know(stub: StubEngine, versions: dict[str, str], spoken: str) -> None:
    stub.answers["GET /version"] = VERSION | versions
    assert greet(find_endpoint(stub.env))[1] == spoken


def test_an_engine_that_is_too_old_is_told_with_versions(stub: StubEngine) -> None:
    """D13; its twin, one version newer, is above."""
    stub.answers["GET /version"] = VERSION | {"Version": "19.03.15", "ApiVersion": "1.40"}
    error = refused(stub.env)
    assert "19.03.15" in error.message
    assert "1.40" in error.message
    assert "1.41" in error.message


@pytest.mark.parametrize("answer", [{"hello": "world"}, ["a"], "text", {"ApiVersion": "new"}])
def test_something_else_that_answers_is_told(stub: StubEngine, answer: object) -> None:
    stub.answers["GET /version"] = answer
    refused(stub.env)


def test_docker_host_wins_over_contexts(stub: StubEngine) -> None:
    endpoint = find_endpoint(stub.env | {"DOCKER_CONTEXT": "absent"})
    assert endpoint.context == "default"
    assert endpoint.host == stub.env["DOCKER_HOST"]


def test_a_context_is_followed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "my-engine"
    # Docker keeps a context in a folder named by the hash of its name.
    folder = tmp_path / "contexts" / "meta" / sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    meta = {
        "Name": name,
        "Metadata": {},
        "Endpoints": {"docker": {"Host": "unix:///run/mine.sock", "SkipTLSVerify": False}},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": name}))
    for environ in ({"DOCKER_CONTEXT": name}, {"PATH": ""}):
        endpoint = find_endpoint(environ)
        assert (endpoint.context, endpoint.host) == (name, "unix:///run/mine.sock")


def test_a_context_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no context `absent`" in refused({"DOCKER_CONTEXT": "absent"}).message


def test_an_engine_is_trusted_by_its_own_ca_whatever_requests_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/a/company's.pem")
    host = {"DOCKER_HOST": "tcp://127.0.0.1:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    client = find_endpoint(host).client("1.44", 1)
    settings = client.merge_environment_settings(client.base_url, {}, None, None, None)
    assert settings["verify"] == str(tmp_path / "ca.pem")
