"""Releases in OCI layouts, as `mlimg build --output` writes them, with a server of one layer."""

from pathlib import Path
from typing import Any

from mlimg.append import Image, Layer, append, model_image
from mlimg.layout import Layout, LayoutEntry, entry
from mlimg.layout_writer import writing
from mlimg.modelpack import ARTIFACT_TYPE, model_pack
from mlimg.pack import pack
from mlimg.publish import model_labels
from mlimg.runtime.descriptor import OCI_LAYER, OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.reference import ImageReference
from tests.support.models import DictSource

SCORES = ImageReference.parse("build.example/team/scores:3")
SERVER = ImageReference.parse("build.example/team/server:1.0")
MODEL = ImageReference.parse("build.example/team/models/scores:3")


def write_layout(
    folder: Path, files: dict[str, bytes], *, pattern: str = "in-image", inputs: str = "one", server: bytes = b"server"
) -> Layout:
    """Write a release."""
    packed = pack(DictSource(files), name="scores", version="3", framework="custom", format="custom")
    blob = Descriptor(OCI_LAYER, Digest.of(server), len(server))
    labels = {"io.mlimg.server.inputs": inputs, "io.mlimg.server.version": "1.0"}
    image = Image.of(
        os="linux", architecture="amd64", variant="", settings={"Labels": labels}, layers=[Layer(blob.digest, blob)]
    )
    layout = Layout(folder)
    with writing(layout) as writer:
        writer.add(blob, [server])
        for layer in packed.layers:
            assert layer.digest
            writer.add(Descriptor("", layer.digest, layer.size_bytes), layer.chunks())

        def add(manifest: bytes, config: bytes, *names: ImageReference, **extra: Any) -> list[LayoutEntry]:
            writer.add_document(config)
            writer.add_document(manifest)
            return [
                entry(name, Descriptor(OCI_MANIFEST, Digest.of(manifest), len(manifest)), **extra) for name in names
            ]

        entries = add(image.manifest(), image.config(), SERVER)
        if pattern == "in-image":
            whole = append(image, packed.layers, model_labels(packed))
            entries += add(whole.manifest(), whole.config(), SCORES.with_tag("3-1.0"), SCORES)
        else:
            model = model_image(packed.layers, model_labels(packed))
            artifact = model_pack(packed.manifest, packed.layers, model_labels(packed))
            entries += add(model.manifest(), model.config(), MODEL)
            pack_name = MODEL.with_tag("3-modelpack")
            entries += add(artifact.manifest, artifact.config, pack_name, artifactType=ARTIFACT_TYPE)
        writer.list_entries(entries)
    return layout
