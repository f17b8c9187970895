"""The line to a registry: TLS that is not sound, proxies, clocks, texts of others. Bars: E22, E23, E28, I11."""

import base64
import json
import logging
import os
import re
import ssl
import warnings

import pytest

from mlimg.runtime.errors import MlimgError, RemoteError, RemoteTemporaryError, printable
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.reference import ImageReference
from mlimg.runtime.server.logs import complain
from tests.support.certificates import Authority, Kind
from tests.support.faults import Answer, Fault, FaultServer, Request
from tests.support.registry import MemoryRegistry

PASSWORD = "s3cret-of-the-proxy"
REGISTRY = "registry.example"  # nobody can resolve it: whoever reaches it went through the proxy


@pytest.fixture
def memory() -> MemoryRegistry:
    registry = MemoryRegistry()
    registry.put_manifest("app", "1", b'{"schemaVersion":2}')
    return registry


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy but that of a test."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def resolve(host: str, access: Access) -> object:
    return Registry(access).resolve(ImageReference.parse(f"{host}/app:1"))


# TLS


def reach(server: FaultServer, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> object:
    # Loopback speaks plain HTTP by itself, so this host has to pass for another one.
    monkeypatch.setattr("mlimg.runtime.oci.transport.is_loopback", lambda _netloc: False)
    return resolve(server.host, Access(ca_bundle=authority.bundle, backoff_seconds=0.01, stall_seconds=2, attempts=2))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("expired", "certificate has expired"),
        ("not yet valid", "not yet valid"),
        ("wrong name", "127.0.0.1"),
        ("self-signed", "self-signed"),
    ],
)
def test_e22_a_certificate_that_is_not_sound_is_refused_before_a_request(
    memory: MemoryRegistry, authority: Authority, monkeypatch: pytest.MonkeyPatch, kind: Kind, told: str
) -> None:
    with FaultServer(memory, tls=authority.context(kind)) as server:
        with pytest.raises(RemoteError, match="no trusted connection") as caught:
            reach(server, authority, monkeypatch)
        assert not server.requests
    assert not isinstance(caught.value, RemoteTemporaryError)
    assert (caught.value.status, told in caught.value.message) == (16, True)
    with FaultServer(memory, tls=authority.context("sound")) as server:  # the twin
        assert reach(server, authority, monkeypatch)


def test_e22_plain_http_where_tls_is_spoken_is_refused_and_not_fallen_back_to(
    memory: MemoryRegistry, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer(memory) as server:
        with pytest.raises(RemoteError, match="no trusted connection"):
            reach(server, authority, monkeypatch)
        assert not server.requests


def test_e22_old_tls_is_refused(memory: MemoryRegistry, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    context = authority.context("sound")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with FaultServer(memory, tls=context) as server:
        with pytest.raises(RemoteError):
            reach(server, authority, monkeypatch)
        assert not server.requests


@pytest.mark.parametrize("kind", ["expired", "not yet valid"])
def test_e28_a_certificate_of_another_day_has_one_look_at_the_clock(
    memory: MemoryRegistry, authority: Authority, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """A clock that is a day wrong meets a sound certificate as this one meets a certificate that is a day off."""
    with FaultServer(memory, tls=authority.context(kind)) as server, pytest.raises(RemoteError) as caught:
        reach(server, authority, monkeypatch)
    assert re.search(r"clock.* 20\d\d-\d\d-\d\d", caught.value.hint or "")
    with FaultServer(memory, tls=authority.context("wrong name")) as server, pytest.raises(RemoteError) as caught:
        reach(server, authority, monkeypatch)
    assert "clock" not in (caught.value.hint or "")  # the twin


# Proxies


def through(proxy: FaultServer, monkeypatch: pytest.MonkeyPatch, *, no: str = "") -> object:
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", f"http://alice:{PASSWORD}@{proxy.host}")
    monkeypatch.setenv("no_proxy", no)
    insecure = frozenset({REGISTRY})
    return resolve(REGISTRY, Access(insecure=insecure, backoff_seconds=0.01, stall_seconds=2, attempts=2))


def logins(request: Request, name: str = "proxy-authorization") -> list[str]:
    """What a request carries of a login."""
    return [text for key, text in request.headers.items() if key.lower() == name]


def guarded(memory: MemoryRegistry) -> "FaultServer":
    """A proxy that asks for a login, with the registry behind it."""

    def answer(request: Request) -> Answer:
        if not logins(request):
            return Answer(407, {"Proxy-Authenticate": "Basic realm=proxy"})
        return memory(request)

    return FaultServer(answer)


def test_e23_a_proxy_gets_its_password_and_nobody_else(memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(memory) as proxy:
        assert through(proxy, monkeypatch)
        assert {request.path for request in proxy.requests} == {f"http://{REGISTRY}/v2/app/manifests/1"}
        packed = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
        assert all(logins(request) == [f"Basic {packed}"] for request in proxy.requests)
        assert not any(logins(request, "authorization") for request in proxy.requests)
        seen = len(proxy.requests)
        with FaultServer(memory) as registry:
            assert resolve(registry.host, Access())  # of this machine: the proxy is not asked
            assert registry.requests
            assert not any(logins(request) for request in registry.requests)
        assert len(proxy.requests) == seen


def test_e23_what_no_proxy_names_is_not_asked_through_it(
    memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded(memory) as proxy:
        with pytest.raises(RemoteTemporaryError, match="resolve"):
            through(proxy, monkeypatch, no=f"other.example,{REGISTRY}")
        assert not proxy.requests
        assert through(proxy, monkeypatch, no=f"other.example,x{REGISTRY}")  # the twin


@pytest.mark.parametrize("fault", [Fault(times=9, answer=Answer(407)), Fault(times=9, cut_request_at=0), None])
def test_e23_a_proxy_that_refuses_is_told_without_its_password(
    memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Fault | None
) -> None:
    caplog.set_level(logging.DEBUG)
    with guarded(memory) as proxy:
        if fault is None:  # and the twin, at debug level
            assert through(proxy, monkeypatch)
        else:
            proxy.faults.append(fault)
            with pytest.raises(MlimgError) as caught:
                through(proxy, monkeypatch)
            assert fault.fired
            assert PASSWORD not in f"{caught.value!r} {caught.value.message} {caught.value.hint}"
    assert PASSWORD not in caplog.text


def test_e23_a_proxy_that_is_not_there_is_told_without_its_password(
    memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    with guarded(memory) as proxy:
        proxy.host = f"127.0.0.1:{free_port}"
        with pytest.raises(RemoteTemporaryError) as caught:
            through(proxy, monkeypatch)
        assert PASSWORD not in f"{caught.value!r} {caught.value.message} {caught.value.hint}"
        for scheme in ("https", "http"):
            access = Access(insecure=frozenset({REGISTRY} if scheme == "http" else ()), attempts=1)
            with pytest.raises(MlimgError) as caught:
                resolve(REGISTRY, access)
            assert PASSWORD not in f"{caught.value!r} {caught.value.message} {caught.value.hint}"


# Foreign texts

EVIL = "\x1b]0;owned\x07\x1b[2K\rerror: all is well\n\u202egnp.exe\u2066\x9b31m\x00"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
@pytest.mark.parametrize("body", ["json", "page", "header"])
def test_i11_what_a_registry_says_is_shown_escaped_on_one_line(
    memory: MemoryRegistry, capsys: pytest.CaptureFixture[str], status: int, body: str
) -> None:
    page = json.dumps({"errors": [{"code": "DENIED" + EVIL, "message": EVIL, "detail": EVIL}]})
    headers = {"WWW-Authenticate": 'Bearer realm="http://\x1b[31mx\x9b.example/",service="\x1b[2K"'}
    answer = Answer(status, headers if body == "header" else {}, (EVIL if body == "page" else page).encode())
    fault = Fault("HEAD|GET|POST", times=9, answer=answer)
    with FaultServer(memory, fault) as server:
        reference = ImageReference.parse(f"{server.host}/app:1")
        with pytest.raises(MlimgError) as caught:
            Registry(Access(backoff_seconds=0.01, attempts=2)).manifest(reference)
        assert fault.fired
    complain(caught.value)  # what a container prints; the command line has the same `printable`
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert printable(line.rstrip("\n")) == line.rstrip("\n")
    assert not set(line) & set("\x1b\x07\x00\r\x9b\u202e\u2066")
