"""Models read from a registry in ranges. Bars: E15, E19, E20, E25, G1, G3, G8, G15."""

import gzip
import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, RemoteError, RemoteTemporaryError
from mlimg.runtime.fetch import FetchedModel, fetch
from mlimg.runtime.layer_tar import single_head, single_size_bytes
from mlimg.runtime.oci import Access
from mlimg.runtime.oci.credentials import Credentials
from mlimg.runtime.reference import ModelUri
from mlimg.runtime.stores import ModelPayload
from mlimg.runtime.stores.oci_origin import OciOrigin
from tests.support.faults import Answer, Fault, FaultServer, Request, endless, flip
from tests.support.payloads import payload, publish_in_memory
from tests.support.registry import MemoryRegistry

BLOCK = 10_000
FILES = {
    "a/weights.bin": random.Random(1).randbytes(300_000),
    "b+x": random.Random(2).randbytes(300_000),
    "small.txt": b"small",
}
QUICK = Access(backoff_seconds=0.01, stall_seconds=0.5, attempts=3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kilobytes do for megabytes."""
    monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", 100_000)
    monkeypatch.setattr("mlimg.runtime.stores.oci_origin._WORTH_RANGES_BYTES", 100_000)
    monkeypatch.setattr("mlimg.runtime.part_file.BLOCK_BYTES", BLOCK)
    monkeypatch.setattr("mlimg.runtime.ranges.RANGE_BYTES", 4 * BLOCK)


@pytest.fixture
def memory() -> MemoryRegistry:
    registry = MemoryRegistry()
    publish_in_memory(registry, payload(FILES))
    return registry


def layer(model: ModelPayload, which: int = 0) -> str:
    digest = model.layers[which].digest
    assert digest is not None
    return digest.hex


def get(server: FaultServer, into: Path, **options: Any) -> FetchedModel:
    uri = options.pop("uri", ModelUri.parse(f"oci://{server.host}/models/digits:3"))
    arguments = {"access": QUICK, "progress": lambda _: None, "stop": threading.Event(), "patience_seconds": 0}
    return fetch(uri, [into], **(arguments | options))


def check(model: FetchedModel) -> None:
    assert {name: (model.folder / name).read_bytes() for name in FILES} == FILES
    assert [(model.folder / name).stat().st_mode & 0o777 for name in FILES] == [0o644, 0o755, 0o644]


def test_what_is_expected_of_a_layer_is_what_is_packed() -> None:
    deep = {"one/two/" + "long-name" * 20 + ".bin": bytes(150_000), "ünï/b+x": bytes(100_001)}
    packed = payload(deep)
    files = {file.path: file for file in packed.manifest.files}
    for made in packed.layers[:-1]:
        data = b"".join(bytes(chunk) for chunk in made.chunks())
        (path,) = made.paths  # type: ignore[attr-defined]
        file, executable = files[path], path.name.endswith("+x")
        path_in_tar = type(path)("models") / path
        head = single_head(path_in_tar, file.size_bytes, executable=executable)
        assert data.startswith(head)
        assert single_size_bytes(path_in_tar, file.size_bytes) == len(data) == made.size_bytes
        assert len(head) == len(single_head(path_in_tar, file.size_bytes, executable=not executable))


def test_large_layers_come_in_ranges_and_each_byte_once(memory: MemoryRegistry, tmp_path: Path) -> None:
    with FaultServer(memory) as server:
        check(get(server, tmp_path))
        for which in (0, 1):
            asked = server.matching("GET", layer(payload(FILES), which))
            ranges = [request.headers["Range"].removeprefix("bytes=").split("-") for request in asked]
            spans = sorted((int(first), int(last)) for first, last in ranges)
            assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(spans))
            assert (spans[0][0], spans[-1][1]) == (0, payload(FILES).layers[which].size_bytes - 1)
            assert len(spans) == 2 + 8


def test_a_server_without_ranges_is_read_in_one_stream(memory: MemoryRegistry, tmp_path: Path) -> None:
    def no_ranges(request: Request) -> Answer:
        headers = {name: value for name, value in request.headers.items() if name != "Range"}
        return memory(Request(request.method, request.path, headers, request.body))

    with FaultServer(no_ranges) as server:
        check(get(server, tmp_path))
        assert server.count("GET", layer(payload(FILES))) == 3  # two looks, and the whole


@pytest.mark.parametrize("how", ["gzip", "another time"])
def test_a_layer_that_somebody_packed_anew_is_read_as_a_whole(memory: MemoryRegistry, tmp_path: Path, how: str) -> None:
    model = payload(FILES)
    data = b"".join(bytes(chunk) for chunk in model.layers[0].chunks())
    other = gzip.compress(data) if how == "gzip" else _with_time(data)
    memory.put("models/digits", other)
    manifest = json.loads(model.image_manifest)
    manifest["layers"][0] |= {"digest": Digest.of(other).text, "size": len(other)}
    memory.put_manifest("models/digits", "3", json.dumps(manifest).encode())
    with FaultServer(memory) as server:
        check(get(server, tmp_path))
        whole = [r for r in server.matching("GET", Digest.of(other).hex) if "Range" not in r.headers]
    assert len(whole) == 1


def _with_time(data: bytes) -> bytes:
    """The same tar with another time in its first header, and the header's checksum put right."""
    head = bytearray(data[:512])
    head[136:148] = b"00000000001\0"
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + data[512:]


@pytest.mark.parametrize("kind", ["cut_at", "reset_at", "stall_at"])
def test_e5_a_range_that_breaks_is_gone_on_with(memory: MemoryRegistry, tmp_path: Path, kind: str) -> None:
    fault = Fault("GET", layer(payload(FILES)), skip=3, times=2, **{kind: 12_345})  # type: ignore[arg-type]
    with FaultServer(memory, fault) as server:
        check(get(server, tmp_path, patience_seconds=60))
    assert fault.fired == 2


def test_e25_a_line_that_falls_silent_for_a_while_is_waited_for(memory: MemoryRegistry, tmp_path: Path) -> None:
    silent = Fault("GET", "blobs", skip=4, times=6, stall_at=100)
    with FaultServer(memory, silent) as server:
        check(get(server, tmp_path, patience_seconds=60))
    assert silent.fired == 6


def test_e25_a_line_that_is_silent_for_ever_is_given_up(memory: MemoryRegistry, tmp_path: Path) -> None:
    silent = Fault("GET", layer(payload(FILES)), skip=2, times=999, stall_at=0)
    with FaultServer(memory, silent) as server:
        started = time.monotonic()
        with pytest.raises(RemoteTemporaryError):
            get(server, tmp_path, patience_seconds=1)
        assert time.monotonic() - started < 20
    assert silent.fired >= 2


def test_e25_a_slow_line_is_no_fault(memory: MemoryRegistry, tmp_path: Path) -> None:
    slow = Fault("GET", "blobs", times=999, bytes_per_second=125_000)  # 1 Mbit/s
    with FaultServer(memory, slow) as server:
        check(get(server, tmp_path, patience_seconds=2))
    assert slow.fired > 10


Change = Callable[[Answer], Answer]


def _shorter(answer: Answer) -> Answer:
    assert isinstance(answer.body, bytes)
    span = answer.headers.get("Content-Range", "").partition("/")[0]
    return Answer(answer.status, {**answer.headers, "Content-Range": f"{span}/299999"}, answer.body)


def _longer(answer: Answer) -> Answer:
    span = answer.headers.get("Content-Range", "").partition("/")[0]
    return Answer(answer.status, {**answer.headers, "Content-Range": f"{span}/{2**40}"}, answer.body)


def _endless(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers, endless(b"x" * 65536))


def _elsewhere(answer: Answer) -> Answer:
    return Answer(answer.status, {**answer.headers, "Content-Range": "bytes 0-1/302592"}, answer.body)


LIES: dict[str, tuple[Change, type[Exception]]] = {
    "shorter": (_shorter, IntegrityError),
    "longer": (_longer, IntegrityError),
    "gone": (lambda _: Answer(416), IntegrityError),
    "another part": (_elsewhere, RemoteError),
    "one byte": (lambda answer: flip(answer, 5000), IntegrityError),
    "no number": (lambda _: Answer(206, {"Content-Range": "bytes 1-2/\u00b2"}, b"x"), RemoteError),
    "missing": (lambda _: Answer(404), RemoteError),
}


@pytest.mark.parametrize("lie", LIES)
def test_e19_a_blob_that_is_not_what_it_should_be_never_becomes_visible(
    memory: MemoryRegistry, tmp_path: Path, lie: str
) -> None:
    change, error = LIES[lie]
    fault = Fault("GET", layer(payload(FILES)), skip=4, change=change)
    with FaultServer(memory, fault) as server:
        with pytest.raises(error):
            get(server, tmp_path, patience_seconds=60)
        assert fault.fired == 1
        assert not list(tmp_path.glob(".mlimg/*/*"))
        check(get(server, tmp_path))  # the twin: nothing wrong


def test_e19_an_endless_range_is_read_no_further_than_it_should(memory: MemoryRegistry, tmp_path: Path) -> None:
    fault = Fault("GET", layer(payload(FILES)), skip=4, change=_endless)
    with FaultServer(memory, fault) as server, pytest.raises(IntegrityError):
        get(server, tmp_path, patience_seconds=60)
    assert fault.fired == 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2 * 600_000


@pytest.mark.parametrize("resumed", [False, True])
def test_e19_a_manifest_that_is_not_the_one_of_its_layer_is_noticed(
    memory: MemoryRegistry, tmp_path: Path, resumed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read before its layer is proven: what follows from it must not outlive that."""
    monkeypatch.setattr("mlimg.runtime.stores.oci_origin._HELD_BYTES", 0)
    last = layer(payload(FILES), -1)

    def another(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        return Answer(answer.status, answer.headers, answer.body.replace(b'"version": "3"', b'"version": "4"'))

    with FaultServer(memory) as server:
        if resumed:
            server.faults = [Fault("GET", layer(payload(FILES)), skip=4, change=lambda answer: flip(answer, 5000))]
            with pytest.raises(IntegrityError):
                get(server, tmp_path)
        lie = Fault("GET", last, change=another)
        server.faults = [lie]
        with pytest.raises(IntegrityError, match="changed its manifest"):
            get(server, tmp_path)
        assert lie.fired == 1
        assert not list(tmp_path.glob(".mlimg/*/*"))
        check(get(server, tmp_path))


def test_e20_a_blob_is_taken_as_it_is_sent(memory: MemoryRegistry, tmp_path: Path) -> None:
    def compresses(request: Request) -> Answer:
        whole = Request(request.method, request.path, {k: v for k, v in request.headers.items() if k != "Range"})
        answer = memory(whole)
        if layer(payload(FILES)) not in request.path:
            return answer
        assert isinstance(answer.body, bytes)
        return Answer(200, {"Content-Encoding": "gzip"}, gzip.compress(answer.body))

    with FaultServer(compresses) as server:
        with pytest.raises(IntegrityError):
            get(server, tmp_path)
        assert server.count("GET", layer(payload(FILES))) >= 1
        assert {request.headers["Accept-Encoding"] for request in server.requests} == {"identity"}


def test_e15_credentials_stay_with_the_registry_when_ranges_come_from_elsewhere(
    memory: MemoryRegistry, tmp_path: Path
) -> None:
    access = Access(lambda _: Credentials("alice", "canary"), backoff_seconds=0.01)

    def storage(request: Request) -> Answer:
        return memory(Request(request.method, request.path, request.headers, b""))

    with FaultServer(storage) as elsewhere:

        def asks_for_a_name(request: Request) -> Answer:
            if "Authorization" not in request.headers:
                return Answer(401, {"WWW-Authenticate": 'Basic realm="registry"'})
            if "blobs" in request.path:
                return Answer(307, {"Location": f"http://{elsewhere.host}{request.path}"})
            return memory(request)

        with FaultServer(asks_for_a_name) as server:
            check(get(server, tmp_path, access=access))
            assert [r for r in server.requests if "Authorization" in r.headers]
        assert len(elsewhere.matching("GET", "blobs")) > 10
        assert not [r for r in elsewhere.requests if "Authorization" in r.headers or "canary" in str(r)]


def test_g8_a_tag_that_moved_does_not_matter_to_a_pinned_model(memory: MemoryRegistry, tmp_path: Path) -> None:
    with FaultServer(memory) as server:
        stop = threading.Event()
        pinned = OciOrigin(QUICK, stop).resolve(ModelUri.parse(f"oci://{server.host}/models/digits:3"))
        publish_in_memory(memory, payload({**FILES, "small.txt": b"other"}))
        check(get(server, tmp_path, uri=pinned))
        moved = get(server, tmp_path)
    assert (moved.folder / "small.txt").read_bytes() == b"other"
    assert moved.uri.digest != pinned.digest
