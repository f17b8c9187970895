"""Reading all that is stored: in a registry, a layout, a folder. Bar: E27. `integration/test_stores.py` has buckets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlimg.cli.main import run
from mlimg.layout import Layout
from mlimg.runtime.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import IntegrityError, ModelError, RemoteError, RemoteTemporaryError
from mlimg.runtime.oci import Access
from mlimg.runtime.reference import ImageReference
from mlimg.runtime.stores import open_store
from mlimg.runtime.stores.directory import DirectoryStore
from mlimg.verify import Verified, verify_image, verify_layout, verify_version
from tests.support.faults import Answer, Fault, FaultServer, flip
from tests.support.layouts import write_layout
from tests.support.payloads import FILES, payload
from tests.support.registry import MemoryRegistry
from tests.support.reports import Titles

QUICK = Access(backoff_seconds=0.01, attempts=3)
BIG = {"one.bin": b"1" * 70_000_000, "two.bin": b"2" * 70_000_000, "words.txt": b"three"}
Damage = Callable[[Path], None]


def layers_of(server: FaultServer, model: dict[str, bytes]) -> list[str]:
    """Publish, and forget what that took."""
    stored = open_store(f"oci://{server.host}/models", QUICK).publish(payload(model, with_pack=True))
    assert not stored.existed
    server.requests.clear()
    return [str(layer.digest) for layer in payload(model).layers]


def verify(server: FaultServer, tag: str = "3") -> Verified:
    return verify_image(ImageReference.parse(f"{server.host}/models/digits:{tag}"), QUICK, Titles())


def test_every_blob_of_an_image_is_read_and_the_manifest_is_named() -> None:
    with FaultServer(MemoryRegistry()) as server:
        layers = layers_of(server, BIG)
        found = verify(server)
        assert (found.kind, found.items) == ("model image", len(layers) + 1)
        assert found.reference.startswith(f"{server.host}/models/digits:3@sha256:")
        for digest in layers:
            assert server.matching("GET", digest)
        assert verify(server, "3-modelpack").kind == "ModelPack artifact"


def test_e27_all_that_rotted_in_a_registry_is_named_and_nothing_else() -> None:
    with FaultServer(MemoryRegistry()) as server:
        one, two, rest = layers_of(server, BIG)
        server.faults = [
            rotten := Fault("GET", path=one, times=10**6, change=lambda answer: flip(answer, 60_000_000)),
            lost := Fault("GET|HEAD", path=rest, times=10**6, answer=Answer(404)),
        ]
        with pytest.raises(IntegrityError, match="2 of 4 damaged or lost") as caught:
            verify(server, "3-modelpack")
        assert rotten.fired
        assert lost.fired
        assert one in caught.value.message
        assert "one.bin" in caught.value.message
        assert rest in caught.value.message
        assert two not in caught.value.message
        server.faults = []
        assert verify(server, "3-modelpack").items == 4  # the twin


def test_a_registry_that_cannot_be_read_now_has_not_lost_anything() -> None:
    with FaultServer(MemoryRegistry()) as server:
        first, *_ = layers_of(server, BIG)
        for answer, error in ((Answer(503), RemoteTemporaryError), (Answer(403), RemoteError)):
            server.faults = [fault := Fault("GET", path=first, times=10**6, answer=answer)]
            with pytest.raises(error):
                verify(server)
            assert fault.fired
        server.faults = [cut := Fault("GET", path=first, cut_at=1_000_000)]
        verify(server)
        assert cut.fired == 1


def test_e27_a_manifest_that_rotted_is_told() -> None:
    with FaultServer(MemoryRegistry()) as server:
        layers_of(server, {"one.bin": b"1"})
        server.faults = [rotten := Fault("GET", path="manifests/", times=10**6, change=lambda answer: flip(answer, 40))]
        with pytest.raises(IntegrityError):
            verify(server)
        assert rotten.fired


def test_a_layout_is_read_once_whatever_its_images_share(tmp_path: Path) -> None:
    layout = write_layout(tmp_path, {"weights.bin": b"w" * 5000})
    found = verify_layout(layout, layout.entries(), Titles())
    blobs = {blob.name for blob in (tmp_path / "blobs/sha256").iterdir()}
    assert found.items == len(blobs - {entry.descriptor.digest.hex for entry in layout.entries()})
    one = verify_layout(layout, layout.entries()[:1], Titles())
    assert one.items < found.items


def rot(blob: Path) -> None:
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("damage", [rot, Path.unlink, lambda blob: blob.write_bytes(b"")])
def test_e27_each_blob_of_a_layout_that_rotted_is_found(tmp_path: Path, damage: Damage) -> None:
    layout = write_layout(tmp_path, {"weights.bin": b"w" * 5000})
    for blob in sorted((tmp_path / "blobs/sha256").iterdir()):
        whole = blob.read_bytes()
        damage(blob)
        with pytest.raises(IntegrityError, match=blob.name):
            verify_layout(layout, layout.entries(), Titles())
        blob.write_bytes(whole)
    assert run(["verify", f"oci:{tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: rot(folder / "model.joblib"), "model.joblib"),
        (lambda folder: (folder / "vocabulary" / "words.txt").unlink(), "words.txt"),
        (lambda folder: (folder / "extra.pkl").touch(), "extra.pkl"),
        (lambda folder: rot(folder / "mlimg.manifest"), "mlimg.manifest"),
    ],
)
def test_e27_a_file_of_a_version_that_rotted_is_18_and_named(
    tmp_path: Path, damage: Damage, named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stored = DirectoryStore(tmp_path).publish(payload())
    folder = tmp_path / "digits" / "3"
    assert run(["verify", str(stored.uri), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown == {
        "reference": str(stored.uri),
        "kind": "model",
        "items": 2,
        "size_bytes": sum(len(data) for data in FILES.values()),
    }
    damage(folder)
    assert run(["verify", str(folder)]) == 18
    printed = capfd.readouterr()
    assert printed.out == ""
    assert named in printed.err
    assert str(folder) in printed.err


def test_another_version_than_the_uri_names_is_18(tmp_path: Path) -> None:
    stored = DirectoryStore(tmp_path).publish(payload())
    folder = tmp_path / "digits" / "3"
    with pytest.raises(IntegrityError, match="not the one"):
        verify_version(folder, Titles(), digest=Digest.of(b"another"))
    assert verify_version(folder, Titles(), digest=stored.uri.digest).reference == str(stored.uri)


@pytest.mark.parametrize("text", ["https://example.com/model", "Not An Image", "oci://host/models"])
def test_what_is_no_name_of_anything_stored_is_2(text: str) -> None:
    assert run(["verify", text]) == 2


def test_a_folder_without_a_model_is_12(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"mlimg\.manifest"):
        verify_version(tmp_path, Titles())


def test_nothing_of_a_layout_that_is_none_is_read(tmp_path: Path) -> None:
    assert run(["verify", f"oci:{tmp_path}"]) == 2
    assert not Layout(tmp_path).size_of(Digest.of(b""))


def test_of_an_index_all_that_it_lists_is_read() -> None:
    memory = MemoryRegistry()
    with FaultServer(memory) as server:
        layers_of(server, {"one.bin": b"1"})
        layer = payload({"one.bin": b"1"}).layers[0].digest
        other = payload({"two.bin": b"2"}, version="4")
        open_store(f"oci://{server.host}/models", QUICK).publish(other)
        listed = [
            Descriptor(OCI_MANIFEST, Digest.of(data), len(data)).to_json()
            for data in (payload({"one.bin": b"1"}).image_manifest, other.image_manifest)
        ]
        index = canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})
        memory.put_manifest("models/digits", "all", index, OCI_INDEX)
        assert verify(server, "all").items == 4
        server.faults = [Fault("GET", path=str(layer), times=10**6, change=lambda answer: flip(answer, 700))]
        with pytest.raises(IntegrityError, match=str(layer)):
            verify(server, "all")
