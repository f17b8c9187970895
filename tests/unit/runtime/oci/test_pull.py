"""Reading from a server that fails on purpose. Bars: E2, E3, E5, E11, E15, E18, E19, E20, E22."""

import base64
import json
import random
import ssl
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    EngineError,
    IntegrityError,
    LimitError,
    MlimgError,
    RemoteError,
    RemoteTemporaryError,
)
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.oci.credentials import Credentials
from mlimg.runtime.reference import ImageReference
from tests.support.faults import Answer, Fault, FaultServer, dripping, endless, flip
from tests.support.registry import MemoryRegistry

DATA = random.Random(2).randbytes(300_000)
BLOB = Descriptor(OCI_LAYER, Digest.of(DATA), len(DATA))
QUICK = Access(backoff_seconds=0.01, stall_seconds=0.3)
LAYER = Descriptor(OCI_LAYER, Digest.of(b"layer"), 5).to_json()


@pytest.fixture
def memory() -> MemoryRegistry:
    registry = MemoryRegistry()
    registry.put("app", DATA)
    return registry


def at(server: FaultServer, tag: str = "1") -> ImageReference:
    return ImageReference.parse(f"{server.host}/app:{tag}")


def read(server: FaultServer, descriptor: Descriptor = BLOB, access: Access = QUICK) -> bytes:
    return b"".join(Registry(access).open_blob(at(server), descriptor))


def put_image(memory: MemoryRegistry, tag: str = "1", **changes: Any) -> Digest:
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [BLOB.digest.text]}}
    ).encode()
    memory.put("app", config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor(OCI_CONFIG, Digest.of(config), len(config)).to_json(),
        "layers": [BLOB.to_json()],
        **changes,
    }
    return memory.put_manifest("app", tag, json.dumps(manifest).encode(), str(manifest["mediaType"]))


@pytest.mark.parametrize("kind", ["cut_at", "reset_at", "stall_at"])
@pytest.mark.parametrize("at_byte", [0, 1, len(DATA) // 2, len(DATA) - 1])
def test_e5_a_download_goes_on_where_it_broke(memory: MemoryRegistry, kind: str, at_byte: int) -> None:
    fault = Fault("GET", "blobs", **{kind: at_byte})  # type: ignore[arg-type]
    with FaultServer(memory, fault) as server:
        assert read(server) == DATA
        again = server.matching("GET")[1]
    assert fault.fired == 1
    # What a reset takes with it out of the socket's buffer has to come again; else it goes on at that very byte.
    if kind != "reset_at":
        assert again.headers.get("Range", "bytes=0-") == f"bytes={at_byte}-"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("path", ["blobs", "manifests"])
def test_e2_temporary_answers_are_asked_again(memory: MemoryRegistry, status: int, path: str) -> None:
    put_image(memory)
    fault = Fault("GET", path, times=2, answer=Answer(status))
    with FaultServer(memory, fault) as server:
        image = Registry(QUICK).image(at(server))
        assert read(server, image.layers[0]) == DATA
    assert fault.fired == 2


@pytest.mark.parametrize("status", [400, 403, 405, 413, 415])
@pytest.mark.parametrize("path", ["blobs", "manifests"])
def test_e3_permanent_answers_are_not_asked_again(memory: MemoryRegistry, status: int, path: str) -> None:
    put_image(memory)
    fault = Fault("GET", path, times=99, answer=Answer(status))
    with FaultServer(memory, fault) as server:
        with pytest.raises(RemoteError, match=str(status)) as caught:
            read(server, Registry(QUICK).image(at(server)).layers[0])
        assert fault.fired == server.count("GET", path) == 1
    assert caught.value.status == 16


def test_a_server_without_ranges_sends_all_again(memory: MemoryRegistry) -> None:
    whole = Fault("GET", "blobs", skip=1, answer=Answer(200, {}, DATA))
    cut = Fault("GET", "blobs", cut_at=1000)
    with FaultServer(memory, whole, cut) as server:
        assert read(server) == DATA
    assert (whole.fired, cut.fired) == (1, 1)


def test_of_a_blob_whose_start_is_wanted_little_more_is_sent(memory: MemoryRegistry) -> None:
    with FaultServer(memory) as server:
        pieces = Registry(QUICK).open_blob(at(server), BLOB, only_start=True)
        start = next(pieces)
        pieces.close()
        assert [request.headers["Range"] for request in server.requests] == ["bytes=0-16383"]
        assert DATA.startswith(start)
        # Whoever reads on after all gets the rest in a few requests, checked as a whole.
        assert b"".join(Registry(QUICK).open_blob(at(server), BLOB, only_start=True)) == DATA
        asked = [request.headers.get("Range") for request in server.requests[1:]]
        assert asked == ["bytes=0-16383", "bytes=16384-65535", "bytes=65536-262143", "bytes=262144-"]


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        (Fault("GET", "blobs", answer=Answer(200, {}, DATA)), 1),
        (Fault("GET", "blobs", skip=1, answer=Answer(200, {}, DATA)), 2),
        (Fault("GET", "blobs", skip=1, cut_at=1000), 5),
    ],
    ids=["no ranges", "no ranges any more", "cut"],
)
def test_a_start_that_is_read_to_the_end_is_the_blob(memory: MemoryRegistry, fault: Fault, requests: int) -> None:
    with FaultServer(memory, fault) as server:
        assert b"".join(Registry(QUICK).open_blob(at(server), BLOB, only_start=True)) == DATA
        assert server.count("GET") == requests
    assert fault.fired == 1


@pytest.mark.parametrize("size_bytes", [0, 1, 16383, 16384, 16385])
def test_a_small_blob_is_read_from_its_start_to_its_end(memory: MemoryRegistry, size_bytes: int) -> None:
    data = DATA[:size_bytes]
    memory.put("app", data)
    blob = Descriptor(OCI_LAYER, Digest.of(data), len(data))
    with FaultServer(memory) as server:
        assert b"".join(Registry(QUICK).open_blob(at(server), blob, only_start=True)) == data


@pytest.mark.parametrize("skip", [0, 2])
def test_e19_a_start_with_other_bytes_is_refused_at_the_end(memory: MemoryRegistry, skip: int) -> None:
    with FaultServer(memory, Fault("GET", "blobs", skip=skip, change=flip)) as server, pytest.raises(IntegrityError):
        b"".join(Registry(QUICK).open_blob(at(server), BLOB, only_start=True))


def test_silence_for_ever_is_a_temporary_failure(memory: MemoryRegistry) -> None:
    fault = Fault(
        "GET", "blobs", times=99, stall_at=10, answer=Answer(200, {"Content-Length": str(len(DATA))}, DATA[:10])
    )
    access = Access(backoff_seconds=0.01, stall_seconds=0.1, attempts=2)
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        read(server, access=access)
    assert fault.fired >= 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "blobs", change=flip),
        Fault("GET", "blobs", change=lambda a: flip(a, len(DATA) - 1)),
        Fault("GET", "blobs", change=lambda a: Answer(200, {}, DATA[:-1])),
        Fault("GET", "blobs", change=lambda a: Answer(200, {}, DATA + b"x")),
        Fault("GET", "blobs", change=lambda a: Answer(200, {}, endless())),
        Fault("GET", "blobs", change=lambda a: Answer(200, {"Content-Encoding": "gzip"}, bytes(len(DATA)))),
    ],
    ids=["first byte", "last byte", "short", "long", "endless", "E20 encoded"],
)
def test_e19_a_blob_with_other_bytes_is_refused(memory: MemoryRegistry, fault: Fault) -> None:
    with FaultServer(memory, fault) as server:
        with pytest.raises(IntegrityError):
            read(server)
        assert fault.fired == 1
        assert server.requests[0].headers["Accept-Encoding"] == "identity"
        assert read(server) == DATA  # the twin, with nothing wrong


def test_e15_a_redirect_is_followed_without_credentials(memory: MemoryRegistry) -> None:
    with FaultServer(lambda _request: Answer(200, {}, DATA)) as storage:
        fault = Fault("GET", "blobs", answer=Answer(307, {"Location": f"http://{storage.host}/signed"}))
        challenge = Fault("GET", "blobs", answer=Answer(401, {"WWW-Authenticate": "Basic realm=r"}))
        access = Access(lambda _host: Credentials("alice", "secret"))
        with FaultServer(memory, challenge, fault) as server:
            assert read(server, access=access) == DATA
            assert "Authorization" in server.requests[-1].headers
        assert (fault.fired, len(storage.requests)) == (1, 1)
        assert "Authorization" not in storage.requests[0].headers


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest",
        "http://[::ffff:169.254.169.254]/latest",
        "http://2852039166/latest",
        "file:///etc/passwd",
        "/v2/app/blobs/loop",
        "http://[::1",
    ],
)
def test_e21_redirects_to_bad_places_are_not_followed(memory: MemoryRegistry, target: str) -> None:
    fault = Fault("GET", "blobs", times=99, answer=Answer(302, {"Location": target}))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteError):
        read(server)
    assert 1 <= fault.fired <= 6


def test_an_image_has_its_config_layers_and_diff_ids(memory: MemoryRegistry) -> None:
    digest = put_image(memory)
    with FaultServer(memory) as server:
        image = Registry(QUICK).image(at(server), ("linux", "amd64", ""))
    assert (image.manifest.digest, image.diff_ids, image.platform) == (digest, (BLOB.digest,), ("linux", "amd64", ""))


def test_what_is_not_there_is_none_or_an_error(memory: MemoryRegistry) -> None:
    with FaultServer(memory) as server:
        assert Registry(QUICK).resolve(at(server)) is None
        assert Registry(QUICK).has_blob(at(server), Digest.of(b"")) is None
        assert Registry(QUICK).has_blob(at(server), BLOB.digest) == len(DATA)
        server.faults.append(Fault("HEAD", answer=Answer(200, {"Content-Length": "\u00b2"})))  # a digit, and no number
        assert Registry(QUICK).has_blob(at(server), BLOB.digest) == 0
        with pytest.raises(RemoteError, match="does not exist"):
            Registry(QUICK).manifest(at(server))


def test_an_index_gives_the_image_of_the_platform_and_no_attestation(memory: MemoryRegistry) -> None:
    digest = put_image(memory)
    entry = {"mediaType": OCI_MANIFEST, "digest": digest.text, "size": 1}
    attestation = {**entry, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    amd64 = {"os": "linux", "architecture": "amd64"}
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{**attestation, "platform": amd64}, {**entry, "platform": amd64}],
    }
    memory.put_manifest("app", "all", json.dumps(index).encode(), OCI_INDEX)
    with FaultServer(memory) as server:
        assert Registry(QUICK).image(at(server, "all"), ("linux", "amd64", "")).manifest.digest == digest
        with pytest.raises(EngineError, match="linux/arm64"):
            Registry(QUICK).image(at(server, "all"), ("linux", "arm64", "v8"))


def test_docker_media_types_become_their_oci_names(memory: MemoryRegistry) -> None:
    gzip = {**BLOB.to_json(), "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip"}
    put_image(memory, mediaType="application/vnd.docker.distribution.manifest.v2+json", layers=[gzip])
    with FaultServer(memory) as server:
        assert Registry(QUICK).image(at(server)).layers[0].media_type == OCI_LAYER_GZIP


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"layers": [LAYER] * 1001}, LimitError),
        ({"layers": [LAYER] * 100_000}, LimitError),
        ({"layers": []}, IntegrityError),
        ({"layers": {"0": LAYER}}, IntegrityError),
        ({"layers": [{**LAYER, "size": -1}]}, IntegrityError),
        ({"layers": [{**LAYER, "size": 2**63}]}, IntegrityError),
        ({"layers": [{**LAYER, "digest": "sha256:beef"}]}, IntegrityError),
        ({"layers": [{**LAYER, "size": 2**63 - 1}]}, IntegrityError),
        ({"layers": [{**LAYER, "digest": "md5:" + "0" * 32}]}, IntegrityError),
        ({"layers": [{**LAYER, "digest": "sha256:../../../etc/passwd"}]}, IntegrityError),
        ({"layers": [{**LAYER, "urls": ["http://elsewhere.example/layer"]}]}, IntegrityError),
        ({"layers": [{**BLOB.to_json(), "data": base64.b64encode(b"layes").decode()}]}, IntegrityError),
        ({"manifests": []}, IntegrityError),
        ({"mediaType": "application/json"}, IntegrityError),
        ({"schemaVersion": 1}, IntegrityError),
        ({"padding": "x" * 5_000_000}, LimitError),
        ({"config": {**LAYER, "size": 10**9}}, LimitError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_e18_a_hostile_manifest_is_refused(
    memory: MemoryRegistry, changes: dict[str, Any], error: type[MlimgError]
) -> None:
    put_image(memory, "hostile", **changes)
    put_image(memory)
    with FaultServer(memory) as server:
        with pytest.raises(error):
            Registry(QUICK).image(at(server, "hostile"))
        Registry(QUICK).image(at(server))  # the twin


def test_e18_a_manifest_of_100_mib_is_neither_read_nor_kept(memory: MemoryRegistry) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            yield bytes(1 << 20)
            sent += 1 << 20

    fault = Fault("GET", "manifests", answer=Answer(200, {"Content-Length": str(100 << 20)}, pieces()))
    tracemalloc.start()
    try:
        with FaultServer(memory, fault) as server, pytest.raises(LimitError):
            Registry(QUICK).resolve(at(server))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fault.fired == 1
    assert sent < 16 << 20  # what it read, and what sockets hold
    assert peak < 16 << 20


@pytest.mark.parametrize("header", [OCI_INDEX, "application/vnd.docker.distribution.manifest.v2+json"])
def test_e18_a_manifest_that_its_header_calls_another_kind_is_refused(memory: MemoryRegistry, header: str) -> None:
    """The same bytes read as another kind would be another image: CVE-2021-41190."""
    put_image(memory)
    fault = Fault("GET", "manifests", change=lambda a: Answer(200, {**a.headers, "Content-Type": header}, a.body))
    with FaultServer(memory, fault) as server:
        with pytest.raises(IntegrityError, match="two kinds"):
            Registry(QUICK).image(at(server))
        assert fault.fired == 1
        Registry(QUICK).image(at(server))  # the twin


def test_e18_an_endless_manifest_is_not_read_to_its_end(memory: MemoryRegistry) -> None:
    fault = Fault("GET", "manifests", answer=Answer(200, {}, endless()))
    with FaultServer(memory, fault) as server, pytest.raises(LimitError):
        Registry(QUICK).resolve(at(server))
    assert fault.fired == 1


def test_e18_deep_json_is_refused(memory: MemoryRegistry) -> None:
    memory.put_manifest("app", "deep", b"[" * 100_000)
    with FaultServer(memory) as server, pytest.raises(IntegrityError):
        Registry(QUICK).resolve(at(server, "deep"))


def test_e18_an_index_of_indexes_is_refused(memory: MemoryRegistry) -> None:
    inner = memory.put_manifest("app", "inner", b'{"schemaVersion":2,"manifests":[]}', OCI_INDEX)
    platform = {"os": "linux", "architecture": "amd64"}
    entry = {"mediaType": OCI_INDEX, "digest": inner.text, "size": 1, "platform": platform}
    outer = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    memory.put_manifest("app", "outer", outer, OCI_INDEX)
    with FaultServer(memory) as server, pytest.raises(IntegrityError, match="list of lists"):
        Registry(QUICK).image(at(server, "outer"), ("linux", "amd64", ""))


@pytest.mark.parametrize("pinned", [True, False])
def test_e11_a_manifest_that_is_not_its_digest_is_refused(memory: MemoryRegistry, pinned: bool) -> None:
    digest = put_image(memory)
    fault = Fault("GET", "manifests", change=lambda a: Answer(200, a.headers, bytes(a.body) + b" "))  # type: ignore[arg-type]
    with FaultServer(memory, fault) as server:
        reference = at(server).with_digest(digest) if pinned else at(server)
        with pytest.raises(IntegrityError):
            Registry(QUICK).resolve(reference)
        assert fault.fired == 1
        found = Registry(QUICK).resolve(reference)
        assert found is not None
        assert found.digest == digest


def test_a_manifest_that_drips_is_given_up(memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlimg.runtime.oci.transport.read_capped.__kwdefaults__", {"seconds": 0.2})
    fault = Fault("GET", "manifests", times=99, change=lambda _: Answer(200, {}, dripping(b"{", 0.01)))
    access = Access(backoff_seconds=0.01, attempts=2)
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError, match="did not arrive"):
        Registry(access).resolve(at(server))
    assert fault.fired == 2


def test_e22_tls_is_verified_and_never_given_up(
    memory: MemoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_image(memory)
    # Loopback speaks plain HTTP by itself, so this host has to pass for another one.
    monkeypatch.setattr("mlimg.runtime.oci.transport.is_loopback", lambda _netloc: False)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with FaultServer(memory, tls=context) as server:
        with pytest.raises(RemoteError, match="no trusted connection"):
            Registry(QUICK).resolve(at(server))
        assert not server.requests
        assert Registry(Access(ca_bundle=certificate)).resolve(at(server)) is not None
        elsewhere = ImageReference.parse(f"localhost:{server.host.split(':')[1]}/app:1")
        with pytest.raises(RemoteError, match="no trusted connection"):
            Registry(Access(ca_bundle=certificate)).resolve(elsewhere)
    with FaultServer(memory) as plain:
        with pytest.raises(RemoteError, match="no trusted connection"):
            Registry(QUICK).resolve(at(plain))
        assert not plain.requests
