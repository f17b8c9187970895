"""How connections are made. Bars: E23 (the choice of a proxy)."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mlimg.runtime.errors import LocalIOError
from mlimg.runtime.oci.transport import Access, Transport, Unavailable, proxy_for
from tests.support.servers import free_port


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"])
def test_this_machine_speaks_plain_http(host: str) -> None:
    assert Access().scheme(host) == "http"


@pytest.mark.parametrize("host", ["127.evil.example", "localhost.evil.example", "10.0.0.1", "[::2]", "example.com"])
def test_others_speak_tls_unless_they_are_named(host: str) -> None:
    assert Access().scheme(host) == "https"
    assert Access(insecure=frozenset({host})).scheme(host) == "http"


def test_proxies_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", "internal.example")
    assert proxy_for(urlsplit("https://registry.example/v2/")) == "http://proxy.example:3128"
    assert proxy_for(urlsplit("https://registry.internal.example/v2/")) == ""
    assert proxy_for(urlsplit("https://127.0.0.1:5000/v2/")) == ""


def test_a_ca_bundle_that_is_none_is_said_so(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    for text in (None, "no certificate"):
        if text:
            bundle.write_text(text)
        with pytest.raises(LocalIOError, match="CA bundle"):
            Transport(Access(ca_bundle=bundle)).send("GET", "https://registry.invalid/", {})


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_that_is_refused_is_told_in_words(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}/v2/"
    with pytest.raises(Unavailable, match="Connection refused") as caught:
        Transport(Access()).once("GET", url, {})
    assert str(caught.value).startswith(f"GET {url}: Failed to establish a new connection")
