"""Models in registries. Bars: B2, E14."""

import os
from pathlib import Path
from typing import cast

import pytest

from mlimg.append import model_image
from mlimg.pack import pack
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, ModelError, RemoteError
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import ModelPayload, StoredModel, open_store
from mlimg.sources.local import open_source
from tests.support.faults import Answer, Fault, FaultServer
from tests.support.payloads import payload
from tests.support.registry import MemoryRegistry

QUICK = Access(backoff_seconds=0.01)


def publish(server: FaultServer, model: ModelPayload, **options: tuple[str, ...]) -> StoredModel:
    return open_store(f"oci://{server.host}/models", QUICK, **options).publish(model)  # type: ignore[arg-type]


def test_a_version_is_an_image_and_its_tag_comes_last() -> None:
    memory = MemoryRegistry()
    with FaultServer(memory) as server:
        stored = publish(server, payload())
        assert server.matching("PUT")[-1].path == "/v2/models/digits/manifests/3"
        found = open_store(f"oci://{server.host}/models", QUICK).published("digits", "3")
    assert found is not None
    assert (found.manifest, found.uri) == (payload().manifest, stored.uri)
    assert memory.manifests[("models/digits", "3")][1] == payload().image_manifest
    assert not stored.existed


def test_e14_the_same_content_moves_nothing_even_if_its_layers_were_cut_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FaultServer(MemoryRegistry()) as server:
        first = publish(server, payload())
        asked = len(server.requests)
        monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", 1000)
        assert len(payload().layers) > 1
        again = publish(server, payload())
        assert {request.method for request in server.requests[asked:]} == {"GET"}
    assert again.existed
    assert (again.uri, again.moved_bytes) == (first.uri, 0)


def test_e14_of_a_model_that_is_there_only_the_start_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []

    def count(answer: Answer) -> Answer:
        moved.append(len(cast("bytes", answer.body)))
        return answer

    def model() -> ModelPayload:
        return payload({"small.bin": bytes(500_000), "large.bin": bytes(1_000_000)}, with_pack=True)

    with FaultServer(MemoryRegistry(), Fault("GET", "/blobs/", times=99, change=count)) as server:
        publish(server, model())
        assert publish(server, model()).existed
        assert not moved, "equal manifests need no look into their blobs"
        monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", 800_000)
        assert publish(server, model()).existed
    assert 0 < sum(moved) < 64 * 1024


def test_e14_other_content_is_a_conflict_before_a_byte_moves() -> None:
    with FaultServer(MemoryRegistry()) as server:
        publish(server, payload())
        asked = len(server.requests)
        with pytest.raises(ConflictError, match="other content"):
            publish(server, payload({"model.joblib": b"other"}))
        assert {request.method for request in server.requests[asked:]} == {"GET"}


def test_e14_an_image_that_is_no_model_is_not_overwritten() -> None:
    memory = MemoryRegistry()
    memory.put("models/digits", b'{"rootfs":{"diff_ids":[]}}')
    config = next(digest for _, digest in memory.blobs)
    manifest = b'{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"%s","size":26},"layers":[]}' % config.encode()
    memory.put_manifest("models/digits", "3", manifest)
    with FaultServer(memory) as server, pytest.raises(ConflictError, match="not a model"):
        publish(server, payload())
    assert memory.manifests[("models/digits", "3")][1] == manifest


def test_layers_of_another_repository_are_mounted() -> None:
    memory = MemoryRegistry()
    for layer in payload().layers:
        memory.put("serving/digits", b"".join(bytes(chunk) for chunk in layer.chunks()))
    with FaultServer(memory) as server:
        stored = publish(server, payload(), mount_from=("serving/digits",))
    assert stored.moved_bytes == len(payload().image_config)


@pytest.mark.parametrize("own_layer_bytes", [1, 10**9], ids=["many layers", "one layer"])
def test_a_registry_that_refuses_a_layer_gets_no_tag_and_keeps_no_session(
    own_layer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", own_layer_bytes)
    memory = MemoryRegistry()
    fault = Fault("PUT", "uploads", times=99, answer=Answer(413))
    with FaultServer(memory, fault) as server, pytest.raises(RemoteError, match="413"):
        publish(server, payload({f"{n}.bin": bytes([n]) * 9000 for n in range(6)}))
    assert fault.fired >= 1
    assert not memory.manifests
    assert not memory.sessions


def test_two_writers_at_once_are_noticed_before_the_tag() -> None:
    memory = MemoryRegistry()
    other = payload({"model.joblib": b"other"})

    def overtaken(answer: Answer) -> Answer:
        if ("models/digits", "3") not in memory.manifests:
            layers = [b"".join(bytes(chunk) for chunk in layer.chunks()) for layer in other.layers]
            memory.put("models/digits", other.image_config, *layers)
            memory.put_manifest("models/digits", "3", other.image_manifest)
        return answer

    fault = Fault("PUT", "manifests/sha256", change=overtaken)
    with FaultServer(memory, fault) as server, pytest.raises(ConflictError):
        publish(server, payload())
    assert fault.fired == 1
    assert memory.manifests[("models/digits", "3")][1] == other.image_manifest


@pytest.mark.parametrize("changes", [True, False])
def test_a_model_that_changes_while_it_is_sent_is_not_published(tmp_path: Path, changes: bool) -> None:
    """B2, judged by the registry; the file changes when the first byte has been asked for."""
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(3_000_000))
    os.utime(path, (0, 0))
    packed = pack(open_source(path), name="digits", version="3", framework="sklearn", format="joblib")
    image = model_image(packed.layers, {"io.mlimg.model.digest": packed.manifest.digest.text})
    model = ModelPayload(packed.manifest, packed.layers, image.config(), image.manifest(), packed.open)

    def write(answer: Answer) -> Answer:
        if changes:
            path.write_bytes(bytes(2_999_999) + b"x")
        return answer

    memory = MemoryRegistry()
    fault = Fault("POST", "uploads", change=write)
    with FaultServer(memory, fault) as server:
        if changes:
            with pytest.raises(ModelError, match=r"model\.bin` changed while it was read") as caught:
                publish(server, model)
            assert caught.value.status == 12
        else:
            publish(server, model)
    assert fault.fired == 1
    assert bool(memory.manifests) is not changes
    assert not memory.sessions


def test_the_modelpack_artifact_follows_the_image_and_moves_two_small_files() -> None:
    memory, model = MemoryRegistry(), payload(with_pack=True)
    assert model.model_pack is not None
    with FaultServer(memory) as server:
        stored = publish(server, model)
        tags = [request.path.rpartition("/")[2] for request in server.matching("PUT") if "/manifests/" in request.path]
        assert tags[-2:] == ["3", "3-modelpack"]
        sent = [request for request in server.matching("PUT") if "/blobs/" in request.path]
        assert len(sent) == len(model.layers) + 2, "the layers once, and two configs"
        assert open_store(f"oci://{server.host}/models", QUICK).published("digits", "3") is not None
    assert memory.manifests[("models/digits", "3-modelpack")][1] == model.model_pack.manifest
    assert not stored.warning


def test_e14_an_artifact_that_a_killed_run_did_not_come_to_is_added() -> None:
    memory, model = MemoryRegistry(), payload(with_pack=True)
    with FaultServer(memory) as server:
        first = publish(server, payload())
        again = publish(server, model)
        asked = len(server.requests)
        third = publish(server, model)
        assert {request.method for request in server.requests[asked:]} == {"GET"}
    assert model.model_pack is not None
    assert (again.existed, again.uri, again.moved_bytes) == (True, first.uri, len(model.model_pack.config))
    assert (third.existed, third.moved_bytes) == (True, 0)


def test_e14_an_artifact_of_another_model_is_a_conflict_before_a_byte_moves() -> None:
    memory = MemoryRegistry()
    with FaultServer(memory) as server:
        publish(server, payload(with_pack=True))
        del memory.manifests[("models/digits", "3")]
        asked = len(server.requests)
        with pytest.raises(ConflictError, match="3-modelpack is published with other content"):
            publish(server, payload({"model.joblib": b"other"}, with_pack=True))
        assert {request.method for request in server.requests[asked:]} == {"GET"}
        publish(server, payload(with_pack=True))
    assert ("models/digits", "3") in memory.manifests


def test_e14_an_artifact_whose_layers_were_cut_otherwise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryRegistry()
    with FaultServer(memory) as server:
        publish(server, payload(with_pack=True))
        before = memory.manifests[("models/digits", "3-modelpack")]
        monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", 1000)
        assert publish(server, payload(with_pack=True)).existed
    assert memory.manifests[("models/digits", "3-modelpack")] == before


@pytest.mark.parametrize("what", ["layer", "config"])
def test_e10_an_artifact_that_names_what_the_registry_lacks_is_named_again(what: str) -> None:
    memory, model, notes = MemoryRegistry(), payload(with_pack=True), list[str]()
    assert model.model_pack is not None
    digest = Digest.of(model.model_pack.config) if what == "config" else model.layers[0].digest

    def lose(answer: Answer) -> Answer:
        """It is gone after the image was named."""
        memory.blobs.pop(("models/digits", f"{digest}"), None)
        return answer

    lie = Fault("HEAD", f"/blobs/{digest}", times=0 if what == "layer" else 1, answer=Answer(200))
    losing = Fault("PUT", "/manifests/3$", times=1 if what == "layer" else 0, change=lose)
    with FaultServer(memory, lie, losing) as server:
        store = open_store(f"oci://{server.host}/models", QUICK, on_note=notes.append)
        assert not store.publish(model).warning
    assert lie.fired + losing.fired == 1
    assert ("models/digits", f"{digest}") in memory.blobs
    assert ("models/digits", "3-modelpack") in memory.manifests
    assert len(notes) == 1


def test_a_registry_that_takes_images_alone_has_the_model_all_the_same() -> None:
    memory = MemoryRegistry()
    refusal = Answer(415, body=b'{"errors":[{"code":"MANIFEST_INVALID","message":"images only"}]}')
    refused = Fault("PUT", "/manifests/3-modelpack", answer=refusal)
    with FaultServer(memory, refused) as server:
        stored = publish(server, payload(with_pack=True))
    assert refused.fired == 1
    assert "3-modelpack is not published" in stored.warning
    assert ("models/digits", "3") in memory.manifests
