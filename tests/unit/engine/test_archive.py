import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from mlimg.append import Image, Layer
from mlimg.engine.archive import Archive, Entry, graph_entries, layout_entries, read_saved
from mlimg.runtime.descriptor import OCI_LAYER, Descriptor, MemoryBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ModelError

SERVER, MODEL = b"server layer" * 100, b"model layer" * 333


@dataclass(frozen=True)
class Changed:
    """A blob whose bytes are no longer those that were hashed."""

    digest: Digest
    size_bytes: int
    now: bytes

    @property
    def resume_key(self) -> None:
        return

    def chunks(self) -> Iterator[bytes]:
        yield self.now


def image(*, with_blobs: bool) -> Image:
    layers = [
        Layer(Digest.of(data), Descriptor(OCI_LAYER, Digest.of(data), len(data)) if with_blobs else None)
        for data in (SERVER, MODEL)
    ]
    return Image.of(os="linux", architecture="arm", variant="v7", settings={"User": "1:0"}, layers=layers)


def unpacked(archive: Archive) -> dict[str, bytes]:
    data = b"".join(archive)
    assert len(data) == len(archive)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def test_the_graph_drivers_archive_names_every_layer_and_holds_what_is_missing() -> None:
    files = unpacked(Archive(graph_entries(image(with_blobs=False), [MemoryBlob(MODEL)])))
    (listed,) = json.loads(files["manifest.json"])
    assert listed["RepoTags"] is None
    assert listed["Layers"] == [f"blobs/sha256/{Digest.of(data).hex}" for data in (SERVER, MODEL)]
    assert files[listed["Config"]] == image(with_blobs=False).config()
    assert files[listed["Layers"][1]] == MODEL
    assert listed["Layers"][0] not in files


def test_the_containerd_stores_archive_is_a_layout_without_names() -> None:
    whole = image(with_blobs=True)
    files = unpacked(Archive(layout_entries(whole, whole.manifest(), [MemoryBlob(MODEL)])))
    (root,) = json.loads(files["index.json"])["manifests"]
    assert "annotations" not in root
    assert root["platform"] == {"os": "linux", "architecture": "arm", "variant": "v7"}
    assert files[f"blobs/sha256/{root['digest'].removeprefix('sha256:')}"] == whole.manifest()
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert f"blobs/sha256/{Digest.of(SERVER).hex}" not in files


def test_the_containerd_stores_archive_names_a_layer_otherwise_each_time() -> None:
    whole = image(with_blobs=True)
    one, other = (
        unpacked(Archive(layout_entries(whole, whole.manifest(), [MemoryBlob(MODEL)]))).items() for _ in range(2)
    )
    assert [content for _, content in one - other] == [content for _, content in other - one] == [MODEL]


def test_progress_counts_the_payload_alone() -> None:
    seen: list[int] = []
    unpacked(Archive(graph_entries(image(with_blobs=False), [MemoryBlob(MODEL)]), seen.append))
    assert sum(seen) == len(MODEL)


@pytest.mark.parametrize("now", [MODEL[:-1], MODEL + b"x", MODEL[:-1] + b"X"])
def test_bytes_that_changed_since_they_were_hashed_never_complete_an_archive(now: bytes) -> None:
    blob = Changed(Digest.of(MODEL), len(MODEL), now)
    with pytest.raises(ModelError, match="changed"):
        b"".join(Archive(graph_entries(image(with_blobs=False), [blob])))


def test_no_byte_is_sent_beyond_the_size_that_was_announced() -> None:
    archive = Archive(graph_entries(image(with_blobs=False), [Changed(Digest.of(MODEL), len(MODEL), MODEL * 2)]))
    sent = bytearray()
    with suppress(ModelError):
        for part in archive:
            sent += part
    assert len(sent) < len(archive) - len(MODEL)


def saved() -> bytes:
    whole = image(with_blobs=True)
    layers = [Entry(f"blobs/sha256/{Digest.of(data).hex}", MemoryBlob(data)) for data in (SERVER, MODEL)]
    return b"".join(Archive([*layout_entries(whole, whole.manifest(), []), *layers]))


@pytest.mark.parametrize("part_bytes", [1, 511, 512, 513, 1_000_000])
def test_a_saved_image_is_read_however_its_bytes_come(part_bytes: int) -> None:
    data = saved()
    read = read_saved(data[i : i + part_bytes] for i in range(0, len(data), part_bytes))
    assert read.sizes[Digest.of(MODEL)] == len(MODEL)
    manifest = read.document("index.json")["manifests"][0]
    assert read.blob(Digest.parse(manifest["digest"])) == json.loads(image(with_blobs=True).manifest())


@pytest.mark.parametrize("reads", ["all", "some", "nothing"])
def test_what_is_no_document_is_given_out_as_it_comes(reads: str) -> None:
    data, got = saved(), {}

    def on_content(name: str, size_bytes: int, content: Iterator[bytes]) -> None:
        if reads == "all":
            got[name] = b"".join(content)
            assert len(got[name]) == size_bytes
        elif reads == "some":
            got[name] = next(content)

    read = read_saved([data[i : i + 100] for i in range(0, len(data), 100)], on_content)
    assert read.documents == read_saved([data]).documents
    if reads == "all":
        assert got.pop("manifest.json").startswith(b"[")  # a list, which nobody asks for
        assert got == {f"blobs/sha256/{Digest.of(blob).hex}": blob for blob in (SERVER, MODEL)}


@pytest.mark.parametrize("cut_bytes", [1, 600, 5000])
def test_a_saved_image_that_is_cut_is_refused(cut_bytes: int) -> None:
    data = saved().rstrip(b"\0")
    with pytest.raises(ValueError, match="cut short"):
        read_saved([data[:-cut_bytes]])


def test_a_document_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no index\.json"):
        read_saved([bytes(1024)]).document("index.json")
