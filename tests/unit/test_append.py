import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimg.append import MAX_LAYERS, Image, Layer, append, model_image
from mlimg.pack import lay_out, pack
from mlimg.runtime.descriptor import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, MemoryBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import LimitError
from tests.support.models import DictSource

SETTINGS: dict[str, Any] = {
    "User": "10001:0",
    "Env": ["PATH=/opt/venv/bin:/usr/bin", "PORT=8080"],
    "Entrypoint": ["/opt/venv/bin/python", "-m", "mlimg.runtime"],
    "Cmd": ["serve"],
    "ExposedPorts": {"8080/tcp": {}},
    "Labels": {"io.mlimg.server.version": "1.0"},
}
# What engines add to a config, empty or not, and no container runtime needs.
NOISE: dict[str, Any] = {
    "Hostname": "",
    "Image": "sha256:" + "0" * 64,
    "OnBuild": None,
    "Volumes": {},
    "WorkingDir": "",
    "Shell": None,
    "ArgsEscaped": True,
}


def image(settings: Mapping[str, Any], layers: int = 3, *, architecture: str = "amd64", variant: str = "") -> Image:
    made = [Layer(Digest.of(bytes([number]))) for number in range(layers)]
    return Image.of(os="linux", architecture=architecture, variant=variant, settings=settings, layers=made)


def blobs(count: int) -> list[MemoryBlob]:
    return [MemoryBlob(f"layer {number}".encode()) for number in range(count)]


@given(st.permutations(sorted({**SETTINGS, **NOISE}.items())))
def test_the_same_settings_give_the_same_identity_whoever_wrote_them(items: list[tuple[str, Any]]) -> None:
    assert image(dict(items)).identity == image(SETTINGS).identity


@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_every_setting_that_a_runtime_reads_counts(key: str) -> None:
    others = {name: value for name, value in SETTINGS.items() if name != key}
    assert image(others).identity != image(SETTINGS).identity


def test_a_variant_that_says_nothing_makes_no_other_image() -> None:
    for architecture, variant in (("arm64", "v8"), ("amd64", "v1")):
        named = image(SETTINGS, architecture=architecture, variant=variant)
        assert named == image(SETTINGS, architecture=architecture)
    assert image(SETTINGS, architecture="arm", variant="v7") != image(SETTINGS, architecture="arm", variant="v6")


def test_a_config_lists_content_in_layer_order_and_no_times() -> None:
    config = json.loads(append(image(SETTINGS), blobs(2), {}).config())
    assert config["rootfs"] == {
        "type": "layers",
        "diff_ids": [Digest.of(bytes([number])).text for number in range(3)]
        + [Digest.of(f"layer {number}".encode()).text for number in range(2)],
    }
    assert [line["created_by"] for line in config["history"]] == ["mlimg"] * 5
    assert {line["created"] for line in config["history"]} | {config["created"]} == {"1970-01-01T00:00:00Z"}


def test_an_appended_image_runs_as_the_server_does_and_names_its_model() -> None:
    server = image(SETTINGS)
    both = append(server, blobs(1), {"io.mlimg.model.version": "3"})
    assert {key: value for key, value in both.settings.items() if key != "Labels"} == {
        key: value for key, value in server.settings.items() if key != "Labels"
    }
    assert both.labels == {"io.mlimg.model.version": "3", "io.mlimg.server.version": "1.0"}
    assert both.layers[:3] == server.layers
    assert server.labels == {"io.mlimg.server.version": "1.0"}


def test_layers_are_limited_to_what_engines_run() -> None:
    assert len(append(image(SETTINGS, 100), blobs(MAX_LAYERS - 100), {}).layers) == MAX_LAYERS
    with pytest.raises(LimitError, match="the server has 100 layers and the model 21"):
        append(image(SETTINGS, 100), blobs(MAX_LAYERS - 99), {})


def test_a_manifest_names_config_and_blobs() -> None:
    gzipped = Layer(Digest.of(b"tar"), Descriptor(OCI_LAYER_GZIP, Digest.of(b"gz"), 2))
    server = Image.of(os="linux", architecture="amd64", variant="", settings=SETTINGS, layers=[gzipped])
    both = append(server, blobs(1), {})
    manifest = json.loads(both.manifest({"b": "2", "a": "1"}))
    assert manifest["mediaType"] == OCI_MANIFEST
    assert manifest["config"] == {
        "mediaType": OCI_CONFIG,
        "digest": both.identity.text,
        "size": len(both.config()),
    }
    assert [(layer["mediaType"], layer["digest"], layer["size"]) for layer in manifest["layers"]] == [
        (OCI_LAYER_GZIP, Digest.of(b"gz").text, 2),
        (OCI_LAYER, Digest.of(b"layer 0").text, 7),
    ]
    assert manifest["annotations"] == {"a": "1", "b": "2"}
    assert "annotations" not in json.loads(both.manifest())


def test_a_manifest_cannot_be_made_of_layers_without_blobs() -> None:
    with pytest.raises(ValueError, match="no blob is known"):
        image(SETTINGS).manifest()


def test_a_model_is_not_appended_before_it_is_hashed() -> None:
    with pytest.raises(ValueError, match="before its digest is known"):
        append(image(SETTINGS), lay_out(DictSource({"model.bin": b"x"})), {})


def test_a_model_image_is_the_same_for_every_platform_and_mounts() -> None:
    model = pack(DictSource({"model.bin": b"x"}), name="d", version="1", framework="f", format="f")
    one = model_image(model.layers, {"b": "2", "a": "1"})
    config = json.loads(one.config())
    assert (config["os"], config["architecture"], config["config"]) == (
        "linux",
        "amd64",
        {"Labels": {"a": "1", "b": "2"}},
    )
    assert config["rootfs"]["diff_ids"] == [str(layer.digest) for layer in model.layers]
    assert one.identity == model_image(model.layers, {"a": "1", "b": "2"}).identity
