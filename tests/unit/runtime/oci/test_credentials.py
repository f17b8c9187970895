"""Credentials: where they are kept, and where they may go. Bars: E16, E17, E24."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlimg.runtime.errors import CredentialsError
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.oci.authorization import Challenge, may_receive_credentials
from mlimg.runtime.oci.credentials import Credentials, credentials_from
from mlimg.runtime.reference import ImageReference
from tests.support.faults import Answer, Fault, FaultServer, Request, dripping, endless
from tests.support.registry import MemoryRegistry

ALICE = Credentials("alice", "secret")
PACKED = base64.b64encode(b"alice:secret").decode()


@pytest.fixture
def config(tmp_path: Path) -> Callable[[object], dict[str, str]]:
    def write(value: object) -> dict[str, str]:
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / "config.json").write_text(text)
        return {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}

    return write


Config = Callable[[object], dict[str, str]]


@pytest.mark.parametrize("key", ["r.example", "https://r.example", "https://r.example/v1/", "R.example"])
def test_logins_are_found_under_every_spelling(config: Config, key: str) -> None:
    known = credentials_from(config({"auths": {key: {"auth": PACKED}}}))
    assert known("r.example") == ALICE
    assert known("other.example") is None


def test_docker_hub_is_known_by_its_first_address(config: Config) -> None:
    assert credentials_from(config({"auths": {"https://index.docker.io/v1/": {"auth": PACKED}}}))("docker.io") == ALICE


def test_identity_tokens_are_kept_apart(config: Config) -> None:
    packed = base64.b64encode(b"00000000:").decode()
    known = credentials_from(config({"auths": {"r.example": {"auth": packed, "identitytoken": "t0k"}}}))("r.example")
    assert known == Credentials("00000000", identity_token="t0k")
    assert "t0k" not in repr(known)


def test_the_file_that_podman_and_skopeo_write_wins(config: Config, tmp_path: Path) -> None:
    environ = config({"auths": {"r.example": {"auth": PACKED}}})
    (tmp_path / "auth.json").write_text('{"auths": {}}')
    assert credentials_from(environ | {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})("r.example") is None


def test_a_variable_that_is_empty_is_not_set(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config({"auths": {"r.example": {"auth": PACKED}}})
    monkeypatch.chdir(tmp_path)
    assert credentials_from({"REGISTRY_AUTH_FILE": "", "DOCKER_CONFIG": "", "HOME": ""})("r.example") is None


def test_no_file_means_no_credentials(tmp_path: Path) -> None:
    for environ in ({}, {"HOME": str(tmp_path)}, {"DOCKER_CONFIG": str(tmp_path / "none")}):
        assert credentials_from(environ)("r.example") is None


@pytest.mark.parametrize("text", ["[]", "{", '{"auths": {"r.example": {"auth": "%%%"}}}', "[" * 100_000])
def test_a_damaged_file_is_refused_unshown(config: Config, text: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        credentials_from(config(text))("r.example")
    assert "%%%" not in caught.value.message


def helper(tmp_path: Path, script: str) -> None:
    path = tmp_path / "docker-credential-test"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("table", [{"credsStore": "test"}, {"credHelpers": {"r.example": "test"}}])
def test_helpers_are_asked_for_the_registry(config: Config, tmp_path: Path, table: dict[str, object]) -> None:
    helper(tmp_path, 'read host; echo "{\\"Username\\":\\"alice\\",\\"Secret\\":\\"for $host\\"}"')
    assert credentials_from(config(table))("r.example") == Credentials("alice", "for r.example")


def test_a_helper_that_knows_nothing_gives_nothing(config: Config, tmp_path: Path) -> None:
    helper(tmp_path, "echo credentials not found in native keychain; exit 1")
    assert credentials_from(config({"credsStore": "test"}))("r.example") is None


@pytest.mark.parametrize(
    "script",
    ["sleep 60 & sleep 60", "echo s3cret; exit 1", "echo s3cret", "yes s3cret", "exit 0", 'echo "[{}]"'],
    ids=["hangs", "status 1", "garbage", "endless", "silent", "another shape"],
)
def test_e24_a_broken_helper_is_an_error_in_time_and_unshown(
    config: Config, tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimg.runtime.oci.credentials._HELPER_SECONDS", 0.5)
    helper(tmp_path, script)
    started = time.monotonic()
    with pytest.raises(CredentialsError) as caught:
        credentials_from(config({"credsStore": "test"}))("r.example")
    assert time.monotonic() - started < 5
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "../../bin/sh", "a b"])
def test_e24_a_helper_that_cannot_be_one_is_an_error(config: Config, name: str) -> None:
    with pytest.raises(CredentialsError, match="helper"):
        credentials_from(config({"credsStore": name}))("r.example")


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("registry-1.docker.io", "https://auth.docker.io/token"),
        ("ghcr.io", "https://ghcr.io/token"),
        ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
        ("registry.example.co.uk", "https://auth.example.co.uk/token"),
        ("team.azurecr.io", "https://team.azurecr.io/oauth2/token"),
        ("10.0.0.1:5000", "https://10.0.0.1:5001/token"),
    ],
)
def test_token_services_of_the_registry_may_be_asked(registry: str, realm: str) -> None:
    assert may_receive_credentials(registry, "https", realm)


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("registry.example.com", "https://evil.com/token"),
        ("registry.example.com", "http://registry.example.com/token"),
        ("registry.example.com", "https://registry.example.com@evil.com/"),
        ("registry.example.com", "https://registry.example.com.evil.com/"),
        ("registry.example.com", "https://user:pw@registry.example.com/"),
        ("registry.example.co.uk", "https://evil.co.uk/token"),
        ("team.azurecr.io", "https://evil.azurecr.io/token"),
        ("10.0.0.1:5000", "https://10.1.0.1/token"),
        ("registry.example.com", "https://169.254.169.254/token"),
        ("registry.example.com", "file:///etc/passwd"),
        ("registry.example.com", "/token"),
        ("registry.example.com", ""),
        ("registry.example.com", "https://[::1"),
        ("localhost", "https://evil.localhost/"),
    ],
)
def test_e16_others_may_not(registry: str, realm: str) -> None:
    assert not may_receive_credentials(registry, "https", realm)


def test_challenges_are_read() -> None:
    header = 'Bearer realm="https://a/t",service="s, t",scope="repository:x:pull"'
    assert Challenge.parse(header) == Challenge("bearer", "https://a/t", "s, t")
    assert Challenge.parse("Basic realm=x") == Challenge("basic", "x")
    assert Challenge.parse("Negotiate") is None


class Guarded:
    """A registry that wants tokens, and the service that gives them."""

    def __init__(self, token: Answer | None = None) -> None:
        self.memory = MemoryRegistry()
        self.memory.put_manifest("app", "1", b'{"schemaVersion":2}')
        self.token = token or Answer(200, {}, b'{"token": "opens"}')
        self.realm = ""
        self.host = ""

    def __call__(self, request: Request) -> Answer:
        if request.path.startswith("/token"):
            return self.token
        if request.headers.get("Authorization") == "Bearer opens":
            return self.memory(request)
        return Answer(
            401, {"WWW-Authenticate": f'Bearer realm="{self.realm or f"http://{self.host}/token"}",service="s"'}
        )


@pytest.fixture
def guarded() -> Iterator[tuple[Guarded, FaultServer]]:
    backend = Guarded()
    with FaultServer(backend) as server:
        backend.host = server.host
        yield backend, server


def resolve(server: FaultServer, credentials: Credentials | None = ALICE) -> object:
    access = Access(lambda _host: credentials, backoff_seconds=0.01, stall_seconds=2, attempts=2)
    return Registry(access).resolve(ImageReference.parse(f"{server.host}/app:1"))


def test_a_token_is_fetched_once_and_used(guarded: tuple[Guarded, FaultServer]) -> None:
    _, server = guarded
    registry = Registry(Access(lambda _host: ALICE))
    for _ in range(2):
        assert registry.resolve(ImageReference.parse(f"{server.host}/app:1"))
    (asked,) = server.matching("GET", "/token")
    assert asked.path == "/token?service=s&scope=repository%3Aapp%3Apull"
    assert asked.headers["Authorization"] == f"Basic {PACKED}"


def test_an_identity_token_is_exchanged(guarded: tuple[Guarded, FaultServer]) -> None:
    _, server = guarded
    assert resolve(server, Credentials(identity_token="refresh me"))
    (asked,) = server.matching("POST", "/token")
    assert b"grant_type=refresh_token" in asked.body
    assert b"refresh+me" in asked.body


def test_a_token_that_expired_is_renewed_once(guarded: tuple[Guarded, FaultServer]) -> None:
    backend, server = guarded
    registry = Registry(Access(lambda _host: ALICE))
    reference = ImageReference.parse(f"{server.host}/app:1")
    registry.resolve(reference)
    refused = {"WWW-Authenticate": f'Bearer realm="http://{server.host}/token",service="s"'}
    fault = Fault("GET", "manifests", answer=Answer(401, refused))
    server.faults.append(fault)
    backend.token = Answer(200, {}, b'{"access_token": "opens"}')
    with pytest.raises(CredentialsError):  # the service gives the very token that was refused
        registry.resolve(reference)
    assert fault.fired == 1
    assert server.count("GET", "/token") == 2


def test_e16_a_realm_elsewhere_gets_no_request(guarded: tuple[Guarded, FaultServer]) -> None:
    backend, server = guarded
    backend.realm = "http://canary.invalid/token"
    with pytest.raises(CredentialsError, match="another party"):
        resolve(server)
    assert all("Authorization" not in request.headers for request in server.requests)


@pytest.mark.parametrize(
    "token",
    [
        lambda: Answer(200, {}, endless()),
        lambda: Answer(200, {}, dripping(b" ", 0.01)),
        lambda: Answer(200, {}, b"<html>"),
        lambda: Answer(200, {}, b"[" * 200_000),
        lambda: Answer(200, {}, b'{"token": 7}'),
        lambda: Answer(200, {}, b'{"token": "a\\r\\nX-Evil: 1"}'),
        lambda: Answer(401),
        lambda: Answer(307, {"Location": "http://canary.invalid/"}),
    ],
    ids=["1 GiB", "drip", "no JSON", "deep", "no text", "line break", "refused", "redirect"],
)
def test_e17_a_bad_token_service_is_a_refusal(token: Callable[[], Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlimg.runtime.oci.authorization._TOKEN_SECONDS", 0.3)
    backend = Guarded(token())
    with FaultServer(backend) as server:
        backend.host = server.host
        with pytest.raises(CredentialsError):
            resolve(server)
        assert server.count(path="/token") >= 1
