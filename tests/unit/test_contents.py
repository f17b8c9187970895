"""What is told of images without pulling them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from mlimg.append import Image, Layer, append, model_image
from mlimg.contents import read_contents
from mlimg.modelpack import model_pack
from mlimg.pack import PackedModel, pack
from mlimg.publish import model_labels
from mlimg.runtime.descriptor import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import IntegrityError
from tests.support.models import DictSource

SERVER_LABELS = {
    "io.mlimg.server.inputs": "sha256:1",
    "io.mlimg.server.key": "sha256:2",
    "io.mlimg.server.template": "sklearn@1",
    "io.mlimg.server.version": "1.0",
}


@dataclass
class MemoryReader:
    """Blobs in memory; `read_bytes` counts what was taken of layers."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    read_bytes: int = 0

    def put(self, data: bytes, media_type: str = OCI_MANIFEST) -> Descriptor:
        self.blobs[Digest.of(data)] = data
        return Descriptor(media_type, Digest.of(data), len(data))

    def document(self, descriptor: Descriptor) -> bytes:
        return self.blobs[descriptor.digest]

    def open_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        data = self.blobs[descriptor.digest]
        for start in range(0, len(data), 4096):
            self.read_bytes += len(data[start : start + 4096])
            yield data[start : start + 4096]


@pytest.fixture
def packed() -> PackedModel:
    files = {"model.joblib": b"w" * 1_000_000, "words.txt": b"one"}
    return pack(DictSource(files), name="digits", version="3", framework="sklearn", format="joblib")


@pytest.fixture
def reader(packed: PackedModel) -> MemoryReader:
    reader = MemoryReader()
    for layer in packed.layers:
        reader.put(b"".join(bytes(chunk) for chunk in layer.chunks()))
    return reader


def server(reader: MemoryReader) -> Image:
    layer = reader.put(b"server layer", OCI_LAYER)
    settings = {"User": "10001:0", "Cmd": ["serve"], "Labels": SERVER_LABELS}
    return Image.of(
        os="linux", architecture="arm64", variant="", settings=settings, layers=[Layer(layer.digest, layer)]
    )


def put(reader: MemoryReader, image: Image) -> Descriptor:
    reader.put(image.config())
    return reader.put(image.manifest())


def test_an_in_image_image_tells_its_model_and_its_server(reader: MemoryReader, packed: PackedModel) -> None:
    image = append(server(reader), packed.layers, model_labels(packed))
    found = read_contents(reader, put(reader, image), "digits:3")
    assert (found.kind, found.platform, found.identity) == ("in-image image", "linux/arm64", image.identity)
    assert found.model is not None
    assert found.model.to_json() == {
        "name": "digits",
        "version": "3",
        "framework": "sklearn",
        "digest": packed.manifest.digest.text,
        "format": "joblib",
        "manifest_digest": packed.manifest_digest.text,
        "files": 2,
        "size_bytes": 1_000_003,
    }
    assert found.server is not None
    assert found.server.to_json() == {
        "version": "1.0",
        "template": "sklearn@1",
        "inputs": "sha256:1",
        "key": "sha256:2",
    }
    assert reader.read_bytes < 10_000, "only the beginning of the last layer is read"


def test_a_server_a_model_image_and_an_artifact_are_told_apart(reader: MemoryReader, packed: PackedModel) -> None:
    alone = read_contents(reader, put(reader, server(reader)), "server:1.0")
    assert (alone.kind, alone.model) == ("server image", None)
    model = read_contents(reader, put(reader, model_image(packed.layers, model_labels(packed))), "digits:3")
    artifact = model_pack(packed.manifest, packed.layers, model_labels(packed))
    reader.put(artifact.config)
    pack_found = read_contents(reader, reader.put(artifact.manifest), "digits:3-modelpack")
    assert (model.kind, model.server, pack_found.kind) == ("model image", None, "ModelPack artifact")
    assert pack_found.model == model.model
    assert pack_found.size_bytes == model.size_bytes == packed.size_bytes
    assert pack_found.identity is None


def test_of_an_index_one_image_is_told_and_all_platforms(reader: MemoryReader) -> None:
    descriptor = put(reader, server(reader))
    listed = [
        descriptor.to_json() | {"platform": {"os": "linux", "architecture": "arm64"}},
        descriptor.to_json() | {"platform": {"os": "unknown", "architecture": "unknown"}},
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    found = read_contents(reader, reader.put(canonical_json(index), OCI_INDEX), "server:1.0")
    assert (found.kind, found.platforms, found.manifest.digest) == ("server image", ("linux/arm64",), descriptor.digest)
    empty = reader.put(canonical_json({**index, "manifests": []}), OCI_INDEX)
    with pytest.raises(IntegrityError, match="lists no images"):
        read_contents(reader, empty, "server:1.0")


def test_an_image_that_only_claims_to_hold_a_model_tells_what_it_claims(reader: MemoryReader) -> None:
    labels = {"io.mlimg.model.digest": "sha256:3", "io.mlimg.model.name": "digits"}
    found = read_contents(reader, put(reader, append(server(reader), (), labels)), "digits:3")
    assert found.kind == "in-image image"
    assert found.model is not None
    assert (found.model.name, found.model.files) == ("digits", None)
