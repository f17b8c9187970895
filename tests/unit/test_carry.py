"""A layout goes on into a registry. Bars: E10, E13, E14; B3 (what rotted is not published)."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlimg.carry import Carried, Destination, carry
from mlimg.layout import Layout, entry
from mlimg.layout_writer import LayoutWriter, writing
from mlimg.runtime.descriptor import OCI_INDEX, Descriptor
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import (
    ConflictError,
    IntegrityError,
    LocalIOError,
    RemoteError,
    RemoteTemporaryError,
    UsageError,
)
from mlimg.runtime.oci import Access, Journal, strategy
from mlimg.runtime.oci.image import parse_manifest
from mlimg.runtime.reference import ImageReference
from tests.support.faults import Answer, Fault, FaultServer
from tests.support.layouts import MODEL, SCORES, SERVER, write_layout
from tests.support.registry import MemoryRegistry
from tests.support.reports import Titles

QUICK = Access(backoff_seconds=0.01)


def push(layout: Layout, server: FaultServer, prefix: str = "", report: Titles | None = None) -> Carried:
    return carry(layout, Destination(server.host, prefix), QUICK, report or Titles())


def tags(server: FaultServer) -> list[str]:
    puts = [request.path.removeprefix("/v2/") for request in server.matching("PUT", "/manifests/")]
    return [path.replace("/manifests/", ":") for path in puts if "sha256" not in path]


MODEL_FILES = {"weights.bin": b"w" * 5000}
OTHER_FILES = {"weights.bin": b"x" * 5000}


def test_a_layout_goes_on_whole_tags_last_and_a_second_time_nothing_moves(tmp_path: Path) -> None:
    layout, memory = write_layout(tmp_path, MODEL_FILES), MemoryRegistry()
    with FaultServer(memory) as server:
        first = push(layout, server, "mirror")
        assert tags(server) == ["mirror/team/server:1.0", "mirror/team/scores:3-1.0", "mirror/team/scores:3"]
        order = [request.path for request in server.requests if request.method in {"POST", "PUT", "PATCH"}]
        assert all("/manifests/" in path for path in order[-3:])
        assert [image.how for image in first.images] == ["pushed"] * 3
        asked = len(server.requests)
        again = push(layout, server, "mirror")
        assert {request.method for request in server.requests[asked:]} == {"GET"}
    assert [image.how for image in again.images] == ["unchanged"] * 3
    assert again.moved_bytes == 0
    for listed in layout.entries():
        name = ImageReference.parse(listed.name)
        assert memory.manifests[(f"mirror/{name.repository}", str(name.tag))][1] == layout.document(listed.descriptor)


def test_server_layers_are_sent_once_and_mounted_into_the_image(tmp_path: Path) -> None:
    layout, memory = write_layout(tmp_path, MODEL_FILES), MemoryRegistry()
    with FaultServer(memory) as server:
        push(layout, server)
        assert server.count("POST", "mount=") == 1
    assert ("team/scores", Digest.of(b"server").text) in memory.blobs


def test_model_image_and_artifact_go_to_the_store(tmp_path: Path) -> None:
    with FaultServer(MemoryRegistry()) as server:
        kinds = [image.kind for image in push(write_layout(tmp_path, MODEL_FILES, pattern="load"), server).images]
        assert tags(server)[1:] == ["team/models/scores:3", "team/models/scores:3-modelpack"]
    assert kinds == ["server image", "model image", "ModelPack artifact"]


@pytest.mark.parametrize("pattern", ["in-image", "load"])
def test_e14_another_model_under_the_version_is_a_conflict_before_a_byte_moves(tmp_path: Path, pattern: str) -> None:
    memory = MemoryRegistry()
    with FaultServer(memory) as server:
        push(write_layout(tmp_path / "one", MODEL_FILES, pattern=pattern), server)
        before, asked = dict(memory.manifests), len(server.requests)
        with pytest.raises(ConflictError, match="another model") as caught:
            push(write_layout(tmp_path / "two", OTHER_FILES, pattern=pattern), server)
        assert {request.method for request in server.requests[asked:]} == {"GET"}
        assert caught.value.status == 19
        push(write_layout(tmp_path / "three", MODEL_FILES, pattern=pattern), server)
    assert memory.manifests == before


def test_e14_another_server_under_the_version_is_a_conflict(tmp_path: Path) -> None:
    with FaultServer(MemoryRegistry()) as server:
        push(write_layout(tmp_path / "one", MODEL_FILES), server)
        with pytest.raises(ConflictError, match="another server"):
            push(write_layout(tmp_path / "two", MODEL_FILES, inputs="two"), server)


def test_a_server_that_was_built_anew_with_the_same_inputs_leaves_what_is_published(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    with FaultServer(memory) as server:
        push(write_layout(tmp_path / "one", MODEL_FILES), server)
        before, asked = dict(memory.manifests), len(server.requests)
        again = push(write_layout(tmp_path / "two", MODEL_FILES, server=b"server, built on another day"), server)
        assert {request.method for request in server.requests[asked:]} == {"GET"}
    assert {image.how for image in again.images} == {"unchanged"}
    assert memory.manifests == before


def test_the_missions_tag_follows_to_another_server_version(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    with FaultServer(memory) as server:
        push(write_layout(tmp_path / "one", MODEL_FILES), server)
        old = memory.manifests[("team/scores", "3")][1]
        # Somebody released the model on another server, and moved the tag.
        layout = write_layout(tmp_path / "two", MODEL_FILES, inputs="two")
        image = next(layout.document(listed.descriptor) for listed in layout.entries() if listed.name == str(SCORES))
        for path in (tmp_path / "two" / "blobs" / "sha256").iterdir():
            memory.put("team/scores", path.read_bytes())
        memory.put_manifest("team/scores", "3", image)
        moved = push(Layout(tmp_path / "one"), server)
    how = {str(image.reference.tag): image.how for image in moved.images}
    assert how == {"1.0": "unchanged", "3-1.0": "unchanged", "3": "pushed"}
    assert memory.manifests[("team/scores", "3")][1] == old


def test_b3_what_rotted_in_the_layout_is_not_published(tmp_path: Path) -> None:
    layout, memory = write_layout(tmp_path, MODEL_FILES), MemoryRegistry()
    largest = max((tmp_path / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[700] ^= 1
    largest.write_bytes(data)
    with FaultServer(memory) as server, pytest.raises(IntegrityError, match="not what its digest says") as caught:
        push(layout, server)
    assert caught.value.status == 18
    assert not memory.manifests
    data[700] ^= 1
    largest.write_bytes(data)
    with FaultServer(memory) as server:
        push(layout, server)
    assert memory.manifests


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_layout_that_is_not_whole_is_refused_before_anything_is_asked(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    layout = write_layout(tmp_path, MODEL_FILES)
    harm(max((tmp_path / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size))
    with FaultServer(MemoryRegistry()) as server:
        with pytest.raises((IntegrityError, LocalIOError)):
            push(layout, server)
        assert not server.requests


def test_e13_a_tag_that_somebody_else_sets_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    memory, theirs = MemoryRegistry(), write_layout(tmp_path / "theirs", OTHER_FILES, pattern="load")
    model = next(listed for listed in theirs.entries() if listed.name == str(MODEL))

    def overtaken(answer: Answer) -> Answer:
        for path in (tmp_path / "theirs" / "blobs" / "sha256").iterdir():
            memory.put("team/models/scores", path.read_bytes())
        memory.put_manifest("team/models/scores", "3", theirs.document(model.descriptor))
        return answer

    fault = Fault("PUT", "team/models/scores/manifests/sha256", change=overtaken)
    with FaultServer(memory, fault) as server, pytest.raises(ConflictError, match="another model") as caught:
        push(write_layout(tmp_path / "ours", MODEL_FILES, pattern="load"), server)
    assert fault.fired == 1
    assert memory.manifests[("team/models/scores", "3")][1] == theirs.document(model.descriptor)
    assert [text for text in caught.value.published if "/team/server:1.0@sha256:" in text], "the server was published"


def test_e5_a_push_that_was_cut_goes_on_where_the_registry_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy, "CHUNK_BYTES", 1_000_000)
    layout = write_layout(tmp_path / "out", {"weights.bin": bytes(4_500_000)})
    cut = Fault("PATCH", skip=3, times=99, answer=Answer(503))
    with FaultServer(MemoryRegistry(), cut) as server:

        def carried() -> Carried:
            journal = Journal(tmp_path / "uploads")
            return carry(layout, Destination(server.host), QUICK, Titles(), journal=journal)

        with pytest.raises(RemoteTemporaryError):
            carried()
        server.faults.clear()
        assert 1_500_000 < carried().moved_bytes < 1_600_000
    assert not list((tmp_path / "uploads").iterdir())


def without_digests(answer: Answer) -> Answer:
    return replace(answer, body=answer.body.replace(b"sha256:", b""))


@pytest.mark.parametrize("pattern", ["in-image", "load"])
@pytest.mark.parametrize("tells", [True, False], ids=["tells which", "tells nothing"])
def test_e10_a_registry_that_lacks_what_it_said_it_has_gets_it_once_more(
    tmp_path: Path, pattern: str, tells: bool
) -> None:
    layout, memory, report = write_layout(tmp_path, MODEL_FILES, pattern=pattern), MemoryRegistry(), Titles()
    model = next(listed for listed in layout.entries() if listed.name in {str(MODEL), str(SCORES)})
    *_, layer = parse_manifest(layout.document(model.descriptor), "it").layers
    lie = Fault("HEAD", f"/blobs/{layer.digest}", answer=Answer(200))
    silence = Fault("PUT", "/manifests/", times=99, change=without_digests)
    with FaultServer(memory, lie, *([] if tells else [silence])) as server:
        carried = push(layout, server, report=report)
        assert lie.fired == 1
        # Of a registry that tells what it lacks, nothing else is sent twice.
        sent = [request.path.rpartition("digest=")[2] for request in server.matching("PUT", "/uploads/")]
        assert (len(sent) == len(set(sent))) is tells
    assert [image.how for image in carried.images] == ["pushed"] * 3
    assert any(layer.digest.text == digest for _, digest in memory.blobs)
    (note,) = [note for note in report.notes if "sent again" in note]
    assert ("what it lacks" if tells else "all layers") in note


def test_e10_a_registry_that_loses_what_it_was_sent_again_gets_no_tag(tmp_path: Path) -> None:
    unknown = Answer(404, body=b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"gone"}]}')
    lost, memory = Fault("PUT", "/team/scores/manifests/", times=99, answer=unknown), MemoryRegistry()
    with FaultServer(memory, lost) as server, pytest.raises(RemoteError, match="gone") as caught:
        push(write_layout(tmp_path, MODEL_FILES), server)
    assert (caught.value.status, lost.fired) == (16, 2)
    assert not [name for _, name in memory.manifests if ":" not in name]


def test_an_index_goes_with_the_images_it_lists(tmp_path: Path) -> None:
    layout, memory = write_layout(tmp_path, MODEL_FILES), MemoryRegistry()
    server_entry = next(listed for listed in layout.entries() if listed.name == str(SERVER))
    name = ImageReference.parse("build.example/team/many:1")
    child = server_entry.descriptor
    bare = Descriptor(child.media_type, child.digest, child.size_bytes)
    index = canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [bare.to_json()]})
    with writing(layout) as writer:
        writer.add_document(index)
        writer.list_entries([entry(name, Descriptor(OCI_INDEX, Digest.of(index), len(index)))])
    with FaultServer(memory) as server:
        push(layout, server)
    assert memory.manifests[("team/many", "1")] == (OCI_INDEX, index)
    assert ("team/many", child.digest.text) in memory.manifests


def test_an_empty_layout_is_told(tmp_path: Path) -> None:
    with writing(Layout(tmp_path)):
        pass
    with FaultServer(MemoryRegistry()) as server, pytest.raises(UsageError, match="names no images"):
        push(Layout(tmp_path), server)


@pytest.mark.parametrize(
    ("to", "name", "place"),
    [
        ("ghcr.io", "build.example/team/scores:3", "ghcr.io/team/scores:3"),
        ("oci://localhost:5000/a/b/", "scores:3", "localhost:5000/a/b/scores:3"),
        ("docker.io/me", "build.example/scores:3", "docker.io/me/scores:3"),
    ],
)
def test_where_an_image_goes(to: str, name: str, place: str) -> None:
    assert Destination.parse(to).place(ImageReference.parse(name)) == ImageReference.parse(place)


@pytest.mark.parametrize("to", ["", "team", "ghcr.io/Team", "ghcr.io/a:1"])
def test_a_destination_that_is_none_is_refused(to: str) -> None:
    with pytest.raises(ValueError, match=r"repository|registry"):
        Destination.parse(to)


def test_an_index_that_lists_the_same_again_and_again_is_read_once(tmp_path: Path) -> None:
    """A few kilobytes of a hostile layout must not become gigabytes, nor hours."""
    layout, memory = write_layout(tmp_path, MODEL_FILES), MemoryRegistry()
    manifest = next(listed for listed in layout.entries() if listed.name == str(SCORES)).descriptor
    pad = "x" * 1_000_000

    def add(writer: LayoutWriter, *listed: Descriptor) -> Descriptor:
        index = canonical_json({"schemaVersion": 2, "manifests": [item.to_json() for item in listed], "x": pad})
        writer.add_document(index)
        return Descriptor(OCI_INDEX, Digest.of(index), len(index))

    with writing(layout) as writer:
        inner = add(writer, *[manifest] * 300)
        outer = add(writer, manifest, *[inner] * 300)
        writer.list_entries([entry(SCORES.with_tag("many"), outer)])
    tracemalloc.start()
    try:
        with FaultServer(memory) as server:
            carried = push(layout, server)
            assert server.count("PUT", f"/manifests/{inner.digest}") == 1
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert any(str(image.reference).endswith(f":many@{outer.digest}") for image in carried.images)
    assert peak_bytes < 60_000_000
