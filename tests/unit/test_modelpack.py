"""The ModelPack artifact against the rules of its specification.

https://github.com/modelpack/model-spec/blob/main/docs/config.md and its `schema/config-schema.json`, whose rules for
what mlimg writes are put down here in our own words.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from mlimg.modelpack import FILE_PATH, TITLE, WEIGHT_CONFIG_LAYER, WEIGHT_LAYER, model_pack
from mlimg.pack import PackedModel, pack
from mlimg.runtime.digest import Digest
from tests.support.models import DictSource

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}


def closed(properties: Mapping[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


ABOUT = ("family", "title", "version", "revision", "vendor", "description", "docURL", "sourceURL", "createdAt")
CONFIG = closed(
    {
        "descriptor": closed(
            {
                **dict.fromkeys(ABOUT, TEXT),
                **dict.fromkeys(("authors", "licenses", "datasetsURL"), TEXTS),
                "name": {"type": "string", "minLength": 1},
            }
        ),
        "config": closed(
            dict.fromkeys(("architecture", "format", "paramSize", "precision", "quantization"), TEXT)
            | {"capabilities": {"type": "object"}}
        ),
        "modelfs": closed(
            {"type": {"enum": ["layers"]}, "diffIds": {**TEXTS, "minItems": 1}},
            ("type", "diffIds"),
        ),
    },
    ("descriptor", "config", "modelfs"),
)


def packed(files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch, own_layer_bytes: int = 1000) -> PackedModel:
    monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", own_layer_bytes)
    return pack(DictSource(files), name="digits", version="3", framework="sklearn", format="onnx")


def made(model: PackedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    pack = model_pack(model.manifest, model.layers, {"io.mlimg.model.name": "digits"})
    return json.loads(pack.config), json.loads(pack.manifest)


def test_the_config_follows_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed({"a.onnx": b"a" * 2000, "b.json": b"{}"}, monkeypatch)
    config, _ = made(model)
    jsonschema.validate(config, CONFIG)
    assert config["descriptor"] == {"name": "digits", "title": "digits", "version": "3"}
    assert config["config"] == {"format": "onnx"}
    assert config["modelfs"]["diffIds"] == [str(layer.digest) for layer in model.layers]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "io.mlimg": "ours"}, CONFIG)


def test_the_source_of_a_remote_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed({"a.onnx": b"a"}, monkeypatch)
    source = {"uri": "hf://org/digits", "revision": "abc"}
    config, _ = made(replace(model, manifest=replace(model.manifest, source=source)))
    jsonschema.validate(config, CONFIG)
    assert (config["descriptor"]["sourceURL"], config["descriptor"]["revision"]) == ("hf://org/digits", "abc")


def test_the_manifest_is_an_artifact_over_the_layers_of_the_model_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed({"big/a.onnx": b"a" * 2000, "b.json": b"{}", "c.txt": b"c"}, monkeypatch)
    pack = model_pack(model.manifest, model.layers, {"io.mlimg.model.name": "digits"})
    manifest = json.loads(pack.manifest)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"] == {
        "mediaType": "application/vnd.cncf.model.config.v1+json",
        "digest": str(Digest.of(pack.config)),
        "size": len(pack.config),
    }
    assert [(layer["digest"], layer["size"]) for layer in manifest["layers"]] == [
        (str(layer.digest), layer.size_bytes) for layer in model.layers
    ]
    assert [layer["mediaType"] for layer in manifest["layers"]] == [WEIGHT_LAYER, WEIGHT_CONFIG_LAYER]
    assert [layer["annotations"] for layer in manifest["layers"]] == [
        {FILE_PATH: "models/big/a.onnx", TITLE: "layer-01.tar"},
        {FILE_PATH: "models", TITLE: "layer-02.tar"},
    ]
    assert manifest["annotations"] == {"io.mlimg.model.name": "digits"}


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        ({"weights.json": b"[1]"}, [WEIGHT_LAYER]),
        ({"weights.onnx": b"w" * 2000}, [WEIGHT_LAYER, WEIGHT_CONFIG_LAYER]),  # the manifest's layer has no files
        ({"big.onnx": b"w" * 2000, "small.onnx": b"w"}, [WEIGHT_LAYER, WEIGHT_LAYER]),
        ({"a.json": b"w" * 2000, "b.json": b"w"}, [WEIGHT_LAYER, WEIGHT_LAYER]),
    ],
)
def test_a_layer_is_config_only_where_another_has_the_weights(
    files: Mapping[str, bytes], kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [layer["mediaType"] for layer in made(packed(files, monkeypatch))[1]["layers"]] == kinds


def test_equal_models_give_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = (made(packed({"a.onnx": content}, monkeypatch)) for content in (b"one", b"one", b"two"))
    assert first == again != other


def test_a_layer_that_is_not_hashed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed({"a.onnx": b"a"}, monkeypatch)
    with pytest.raises(ValueError, match="before its digest"):
        model_pack(model.manifest, [replace(layer, digest=None) for layer in model.layers], {})
