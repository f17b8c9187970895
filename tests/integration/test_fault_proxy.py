"""The fault proxy is transparent: with no fault, a real registry and its clients cannot tell that it is there."""

import hashlib
import http.client
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import open_store
from tests.support.faults import FaultServer, forward_to
from tests.support.payloads import FILES, payload
from tests.support.projects import output
from tests.support.stores import docker_registry

BLOB = bytes(range(256)) * 5000
DIGEST = Digest.of(BLOB).text
CONFIG = b"{}"
OCI = "application/vnd.oci.image"
MANIFEST = (
    f'{{"schemaVersion":2,"mediaType":"{OCI}.manifest.v1+json",'
    f'"config":{{"mediaType":"{OCI}.config.v1+json","digest":"{Digest.of(CONFIG).text}","size":2}},'
    f'"layers":[{{"mediaType":"{OCI}.layer.v1.tar","digest":"{DIGEST}","size":{len(BLOB)}}}]}}'
).encode()
Seen = tuple[int, list[tuple[str, str]], str]


@pytest.fixture
def registries(memory_folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Two empty registries, the second behind a proxy, and where both keep their data."""
    folder = memory_folder / "transparent"
    (folder / "direct").mkdir(parents=True)
    (folder / "behind").mkdir()
    try:
        with (
            docker_registry(folder / "direct") as direct,
            docker_registry(folder / "behind") as behind,
            FaultServer(forward_to(behind)) as proxy,
        ):
            yield direct, proxy.host, folder
    finally:
        shutil.rmtree(folder)


def ask(host: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[Seen, str]:
    """All of an answer, without what no two answers share; and its location."""
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    same = [(name.lower(), text) for name, text in answer.getheaders() if name.lower() not in {"date", "connection"}]
    named = [(name, re.sub(r"[0-9a-f-]{36}|_state=[^&]*|127.0.0.1:\d+", "*", text)) for name, text in sorted(same)]
    return (answer.status, named, hashlib.sha256(data).hexdigest()), answer.headers.get("Location", "")


def conversation(host: str) -> list[Seen]:
    """What a client can say to a registry, answers of refusal among it."""
    seen: list[Seen] = []

    def say(method: str, path: str, body: bytes | None = None, **headers: str) -> str:
        answer, location = ask(host, method, path, body, **headers)
        seen.append(answer)
        return location

    say("GET", "/v2/")
    say("GET", "/v2/app/tags/list")
    say("HEAD", f"/v2/app/blobs/{DIGEST}")
    for data in (BLOB, CONFIG):
        location = say("POST", "/v2/app/blobs/uploads/", b"")
        half = len(data) // 2
        location = say("PATCH", location, data[:half], Content_Range=f"0-{half - 1}")
        say("PATCH", location, data[:half], Content_Range=f"{len(data)}-{len(data) + half - 1}")  # a gap
        seen.pop()  # docker-registry takes it or not
        location = say("POST", "/v2/app/blobs/uploads/", b"")
        say("PUT", f"{location}&digest={Digest.of(b'other').text}", data)  # DIGEST_INVALID
        location = say("POST", "/v2/app/blobs/uploads/", b"")
        say("PUT", f"{location}&digest={Digest.of(data).text}", data)
    say("POST", f"/v2/other/blobs/uploads/?mount={DIGEST}&from=app", b"")
    say("HEAD", f"/v2/app/blobs/{DIGEST}")
    say("GET", f"/v2/app/blobs/{DIGEST}")
    say("GET", f"/v2/app/blobs/{DIGEST}", Range="bytes=100-199")
    say("GET", f"/v2/app/blobs/{DIGEST}", Range=f"bytes={len(BLOB)}-")
    say("PUT", "/v2/app/manifests/1", MANIFEST[:-1], Content_Type=f"{OCI}.manifest.v1+json")
    say("PUT", "/v2/app/manifests/1", MANIFEST, Content_Type=f"{OCI}.manifest.v1+json")
    for method in ("HEAD", "GET"):
        say(method, "/v2/app/manifests/1", Accept=f"{OCI}.manifest.v1+json")
        say(method, "/v2/app/manifests/absent")
    say("GET", "/v2/app/tags/list?n=1")
    say("DELETE", f"/v2/app/manifests/{Digest.of(MANIFEST).text}")
    say("GET", "/nowhere")
    return seen


def stored(folder: Path) -> dict[str, str]:
    """Every blob, link and tag that a registry keeps. An upload that nobody finished has a name of chance."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "data").rglob("*")
        if path.is_file() and "_uploads" not in path.parts
    }


def test_every_status_header_and_byte_of_a_conversation_is_the_same(registries: tuple[str, str, Path]) -> None:
    direct, behind, folder = registries
    said, heard = conversation(direct), conversation(behind)
    assert {status for status, _, _ in said} >= {200, 201, 202, 206, 400, 404, 416}
    assert heard == said
    assert stored(folder / "behind") == stored(folder / "direct") != {}


def test_what_is_pushed_and_fetched_through_it_is_the_same(registries: tuple[str, str, Path], tmp_path: Path) -> None:
    direct, behind, folder = registries
    digests = []
    for host in (direct, behind):
        stored_model = open_store(f"oci://{host}/models", Access()).publish(payload(FILES))
        digests.append(str(stored_model.uri.digest))
        # Clients that send their bodies in chunks, and ask for what registries seldom do.
        output("skopeo", "copy", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false",
               f"docker://{host}/models/digits:3", f"docker://{host}/copied:3")  # fmt: skip
        output("oras", "cp", "--from-plain-http", "--to-plain-http", f"{host}/copied:3", f"{host}/again:3")
        output("oras", "copy", "--from-plain-http", "--to-oci-layout", f"{host}/again:3", f"{tmp_path / host}:3")
    assert digests[0] == digests[1]
    assert stored(folder / "behind") == stored(folder / "direct") != {}
    layouts = [
        {str(p.relative_to(tmp_path / host)): p.read_bytes() for p in (tmp_path / host).rglob("*") if p.is_file()}
        for host in (direct, behind)
    ]
    assert layouts[0] == layouts[1]
