"""Fetching models. Bars: E19, G1, G2, G3, G4, G6, G7, G10."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlimg.runtime.errors import (
    IntegrityError,
    LocalIOError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
    Stopped,
)
from mlimg.runtime.fetch import FetchedModel, fetch
from mlimg.runtime.oci import Access
from mlimg.runtime.reference import ModelUri
from tests.support.faults import Answer, Fault, FaultServer, flip
from tests.support.payloads import FILES, payload, publish_in_memory
from tests.support.registry import MemoryRegistry

if TYPE_CHECKING:
    from mlimg.runtime.progress import Progress

QUICK = Access(backoff_seconds=0.01, stall_seconds=0.5, attempts=2)


@pytest.fixture(autouse=True)
def several_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small files have layers of their own, as large ones do."""
    monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", 1000)


@pytest.fixture
def memory() -> MemoryRegistry:
    registry = MemoryRegistry()
    publish_in_memory(registry, payload())
    return registry


def uri(server: FaultServer, version: str = "3") -> ModelUri:
    return ModelUri.parse(f"oci://{server.host}/models/digits:{version}")


def get(server: FaultServer, into: Path, **options: Any) -> FetchedModel:
    arguments = {"access": QUICK, "progress": lambda _: None, "stop": threading.Event(), "patience_seconds": 0}
    return fetch(options.pop("uri", uri(server)), [into], **(arguments | options))


def visible(into: Path) -> list[str]:
    return sorted(
        str(path.relative_to(into)) for path in into.rglob("*") if path.is_file() and ".lock" not in path.name
    )


def test_a_model_arrives_whole_with_its_manifest(memory: MemoryRegistry, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with FaultServer(memory) as server:
        model = get(server, tmp_path, progress=seen.append)
    assert {name: (model.folder / name).read_bytes() for name in FILES} == FILES
    assert (model.folder / "mlimg.manifest").read_bytes() == payload().manifest.to_bytes()
    assert not model.cache_hit
    assert model.fetched_bytes == seen[-1].bytes_done == seen[-1].bytes_total
    assert model.uri.digest is not None
    assert len(visible(tmp_path)) == len(FILES) + 1 + 2  # the image's manifest and config, and nothing is left behind


def test_a_model_that_is_here_is_hashed_and_not_fetched(memory: MemoryRegistry, tmp_path: Path) -> None:
    with FaultServer(memory) as server:
        first = get(server, tmp_path)
        again = get(server, tmp_path, uri=first.uri)
        requests = len(server.requests)
        offline = get(server, tmp_path, uri=first.uri, offline=True)
        assert len(server.requests) == requests
    assert again.cache_hit
    assert offline.cache_hit
    assert again.fetched_bytes == 0


def test_offline_finds_no_tags_and_fetches_nothing(memory: MemoryRegistry, tmp_path: Path) -> None:
    with FaultServer(memory) as server:
        for wanted in (uri(server), uri(server).pinned(payload().manifest.digest)):
            with pytest.raises(ModelError, match="MLIMG_OFFLINE"):
                get(server, tmp_path, uri=wanted, offline=True)
        assert not server.requests


def test_g6_an_altered_copy_is_fetched_again(memory: MemoryRegistry, tmp_path: Path) -> None:
    with FaultServer(memory) as server:
        first = get(server, tmp_path)
        (first.folder / "model.joblib").write_bytes(b"W" + FILES["model.joblib"][1:])
        again = get(server, tmp_path)
    assert not again.cache_hit
    assert (again.folder / "model.joblib").read_bytes() == FILES["model.joblib"]


def layers_of(memory: MemoryRegistry) -> Iterator[str]:
    for layer in payload().layers:
        assert layer.digest is not None
        yield layer.digest.hex


@pytest.mark.parametrize("which", [0, 1], ids=["a large file's layer", "the manifest's layer"])
def test_e19_a_layer_with_a_flipped_byte_never_becomes_visible(
    memory: MemoryRegistry, tmp_path: Path, which: int
) -> None:
    digest = list(layers_of(memory))[which]
    fault = Fault("GET", digest, change=lambda answer: flip(answer, 1500))
    with FaultServer(memory, fault) as server:
        with pytest.raises(IntegrityError):
            get(server, tmp_path, patience_seconds=60)  # G2: patience is for temporary failures alone
        assert fault.fired == 1
        assert not [path for path in visible(tmp_path) if path.startswith(".mlimg/")]
        assert not get(server, tmp_path).cache_hit  # the twin: the same fetch with nothing wrong


def test_a_registry_that_comes_back_is_waited_for(memory: MemoryRegistry, tmp_path: Path) -> None:
    fault = Fault(times=7, answer=Answer(503))
    with FaultServer(memory, fault) as server:
        get(server, tmp_path, patience_seconds=30)
    assert fault.fired == 7


def test_what_is_tried_again_is_said_once(
    memory: MemoryRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault(times=7, answer=Answer(503))
    with FaultServer(memory, fault) as server:
        get(server, tmp_path, patience_seconds=30)
        said = [record.message for record in caplog.records if "tried again for up to 30 s" in record.message]
        caplog.clear()
        get(server, tmp_path / "twin", patience_seconds=30)
    assert fault.fired == 7
    assert len(said) == 1
    assert "the server answers 503" in said[0]
    assert not [record for record in caplog.records if "tried again" in record.message]


def test_g1_patience_ends(memory: MemoryRegistry, tmp_path: Path) -> None:
    fault = Fault(times=999, answer=Answer(503))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteTemporaryError):
        get(server, tmp_path, patience_seconds=1.5)
    assert fault.fired > QUICK.attempts


def test_a_model_that_does_not_exist_is_said_so(memory: MemoryRegistry, tmp_path: Path) -> None:
    with FaultServer(memory) as server, pytest.raises(RemoteError, match="does not exist"):
        get(server, tmp_path, uri=uri(server, "4"))


def test_g4_too_little_room_is_noticed_before_the_first_byte(
    memory: MemoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:3], 1000, 1000 // real.f_frsize, *real[5:10]))
    with FaultServer(memory) as server:
        monkeypatch.setattr(os, "statvfs", lambda _path: full)
        with pytest.raises(LocalIOError, match="free"):
            get(server, tmp_path)
        large, _ = layers_of(memory)
        assert not server.count("GET", large)
        monkeypatch.undo()


class StopWhen(threading.Event):
    """Set when something is so, however slow the machine is."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        super().__init__()
        threading.Thread(target=self._watch, args=(is_so,), daemon=True).start()

    def _watch(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            time.sleep(0.01)
        self.set()


class StopOnceFired(threading.Event):
    """Set a moment after a fault has fired, however slow the machine is."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.set_at = float("inf")
        threading.Thread(target=self._watch, args=(fault,), daemon=True).start()

    def _watch(self, fault: Fault) -> None:
        while not fault.fired:
            time.sleep(0.01)
        time.sleep(0.1)
        self.set_at = time.monotonic()
        self.set()


@pytest.mark.parametrize("stalled", ["manifests/3", "blobs"], ids=["while resolving", "while fetching"])
def test_g10_a_stop_is_heard_within_two_seconds(memory: MemoryRegistry, tmp_path: Path, stalled: str) -> None:
    fault = Fault("GET", stalled, times=99, stall_at=10)
    with FaultServer(memory, fault) as server:
        stop = StopOnceFired(fault)
        with pytest.raises(Stopped):
            get(server, tmp_path, access=Access(), stop=stop)
        assert time.monotonic() - stop.set_at < 2
    assert fault.fired >= 1
    assert not [path for path in visible(tmp_path) if path.startswith(".mlimg/")]


def test_g10_what_had_arrived_is_kept_and_hashed_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"part-{number}.bin": bytes([number]) * 50_000 for number in range(4)}
    memory = MemoryRegistry()
    publish_in_memory(memory, payload(files))
    layers = [layer.digest.hex for layer in payload(files).layers if layer.digest]
    stuck = Fault("GET", layers[3], times=99, stall_at=100)
    with FaultServer(memory, stuck) as server:
        with pytest.raises(Stopped):
            get(server, tmp_path, access=Access(stall_seconds=1), stop=StopWhen(lambda: bundles_of(tmp_path) == 4))
        assert stuck.fired >= 1
        damaged = next(tmp_path.glob(f".mlimg-scratch/*/bundles/{layers[1]}/part-1.bin"))
        damaged.write_bytes(bytes([7]) * 50_000)
        stuck.times = 1
        server.open_stalls.set()
        asked_before = len(server.requests)
        model = get(server, tmp_path)
        asked = {
            layer
            for layer, request in itertools.product(layers, server.requests[asked_before:])
            if layer in request.path
        }
    assert asked == {layers[1], layers[3], layers[4]}  # damaged, missing, and the one with the manifest
    assert {name: (model.folder / name).read_bytes() for name in files} == files


def bundles_of(place: Path) -> int:
    """How many bundles are complete in the scratch of a fetch."""
    return len([path for path in place.glob(".mlimg-scratch/*/bundles/*") if path.suffix != ".part"])


def test_what_a_dead_fetch_of_another_model_left_is_swept(memory: MemoryRegistry, tmp_path: Path) -> None:
    dead = tmp_path / ".mlimg-scratch" / ("a" * 64)
    (dead / "layers").mkdir(parents=True)
    (dead / "layers" / "half").write_bytes(b"half")
    dead.with_suffix(".lock").touch()
    with FaultServer(memory) as server:
        get(server, tmp_path)
    assert not dead.exists()


def test_g7_many_fetch_once(memory: MemoryRegistry, tmp_path: Path) -> None:
    models: list[FetchedModel] = []
    with FaultServer(memory) as server:
        threads = [threading.Thread(target=lambda: models.append(get(server, tmp_path))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        downloads = [server.count("GET", layer) for layer in layers_of(memory)]
    assert downloads == [1, 1]
    assert sorted(model.cache_hit for model in models) == [False] + [True] * 7


def test_an_image_that_is_no_model_is_refused(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    model = payload()
    publish_in_memory(memory, model)
    other = payload({"other.joblib": b"x" * 5000})
    swapped = model.image_manifest.replace(
        str(model.layers[-1].digest).encode(), str(other.layers[-1].digest).encode()
    ).replace(f'"size":{model.layers[-1].size_bytes}}}]'.encode(), f'"size":{other.layers[-1].size_bytes}}}]'.encode())
    memory.put("models/digits", b"".join(bytes(chunk) for chunk in other.layers[-1].chunks()))
    memory.put_manifest("models/digits", "3", swapped)
    with FaultServer(memory) as server, pytest.raises(IntegrityError, match="label of another model"):
        get(server, tmp_path)


def test_an_artifact_that_is_no_image_is_told(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    model = payload(with_pack=True)
    publish_in_memory(memory, model)
    assert model.model_pack is not None
    memory.put("models/digits", model.model_pack.config)
    memory.put_manifest("models/digits", "3-modelpack", model.model_pack.manifest)
    with FaultServer(memory) as server:
        with pytest.raises(IntegrityError, match=r"no image but an artifact of the type .*cncf") as caught:
            get(server, tmp_path, uri=uri(server, "3-modelpack"))
        assert "without `-modelpack`" in caught.value.hint
        assert get(server, tmp_path, uri=uri(server)).manifest.version == "3"  # the twin


def test_an_image_with_a_server_is_told(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    publish_in_memory(memory, payload())
    served = payload(labels={"io.mlimg.server.inputs": "sha256:" + "0" * 64})
    publish_in_memory(memory, served, "serving/digits")
    with FaultServer(memory) as server:
        whole = ModelUri.parse(f"oci://{server.host}/serving/digits:3")
        with pytest.raises(ModelError, match="it is an image with a server"):
            get(server, tmp_path, uri=whole)
        assert get(server, tmp_path, uri=uri(server)).manifest.version == "3"  # the twin
