"""G13: a model that loads and answers wrongly is found by the warm-up, before anybody asks it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ModelError
from mlimg.runtime.manifest import ModelFile, ModelManifest, model_path
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.model import LoadedModel, load_model

FACTS = ServerFacts("sklearn", "1", ("sklearn",), ("joblib", "skops"), {"method": "predict"})
IN = {"name": "x", "datatype": "FP64", "shape": [-1, 2]}
OUT = {"name": "y", "datatype": "FP64", "shape": [-1]}


def manifest(framework: str = "sklearn", file_format: str = "joblib", **signature: Any) -> ModelManifest:
    files = (ModelFile(model_path("model.joblib"), 1, Digest.of(b"1")),)
    return ModelManifest("digits", "3", framework, file_format, files, **signature)


def prepared(found: ModelManifest | None) -> PreparedModel:
    return PreparedModel(Path("/models"), found, "/models", 0, 0.0, cache_hit=False)


def loaded(predict: Any, *, warm_up: Any = None, signature: Any = ([IN], [OUT])) -> LoadedModel:
    handler = Handler(Path("handler.py"), lambda _f, _o: "model", predict, lambda _m: signature, warm_up)
    return load_model(handler, prepared(manifest()), FACTS)


def test_a_model_has_the_name_and_version_of_its_manifest() -> None:
    model = loaded(lambda _m, i: {"y": i["x"].sum(axis=1)})
    assert (model.metadata.name, model.metadata.version, model.metadata.platform) == ("digits", "3", "sklearn")
    model.warm_up()


def test_a_folder_without_manifest_is_served_as_model() -> None:
    handler = Handler(Path("handler.py"), lambda _f, _o: None, lambda _m, i: i, None, None)
    model = load_model(handler, prepared(None), FACTS)
    assert (model.metadata.name, model.metadata.version, model.metadata.inputs) == ("model", None, ())


def test_the_manifests_signature_counts_where_the_handler_has_none() -> None:
    handler = Handler(Path("handler.py"), lambda _f, _o: None, lambda _m, i: i, None, None)
    model = load_model(handler, prepared(manifest(inputs=(IN,), outputs=(OUT,))), FACTS)
    assert [spec.name for spec in model.metadata.inputs] == ["x"]
    with pytest.raises(ModelError, match="manifest"):
        load_model(handler, prepared(manifest(inputs=({},))), FACTS)


class OnDevice:
    """As tensors of a GPU are that nobody brought to the processor."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("on a device")


@pytest.mark.parametrize(
    "predict",
    [
        lambda _m, i: {"y": i["x"]},
        lambda _m, _i: {"z": [1.0]},
        lambda _m, _i: [1.0],
        lambda _m, _i: 1 / 0,
        lambda _m, _i: {"y": OnDevice()},
    ],
    ids=["wrong shape", "wrong name", "no dict", "raises", "what numpy cannot take over"],
)
def test_g13_a_wrong_answer_to_the_warm_up_ends_the_start(predict: Any) -> None:
    with pytest.raises(ModelError, match="warm-up request"):
        loaded(predict).warm_up()


def test_g13_a_warm_up_of_the_handler_wins() -> None:
    warmed: list[Any] = []
    loaded(lambda _m, _i: 1 / 0, warm_up=warmed.append).warm_up()
    assert warmed == ["model"]
    with pytest.raises(ModelError, match="warm_up"):
        loaded(None, warm_up=lambda _m: 1 / 0).warm_up()


def test_a_model_that_refuses_invented_zeros_is_ready_all_the_same() -> None:
    def refuse(_model: Any, _inputs: Any) -> Any:
        raise InputError("unknown category")

    loaded(refuse).warm_up()


def test_a_model_whose_datatypes_are_not_known_is_not_asked_in_advance() -> None:
    loaded(lambda _m, _i: 1 / 0, signature=([{"name": "x", "shape": [-1]}], [])).warm_up()


def test_outputs_are_held_to_the_signature() -> None:
    model = loaded(lambda _m, i: {"y": i["x"].sum(axis=1), "extra": i["x"]})
    answer = model.predict({"x": np.ones((2, 2))}, ["y"])
    assert answer.keys() == {"y"}


@pytest.mark.parametrize(
    ("framework", "file_format", "served"),
    [
        ("sklearn", "joblib", True),
        ("custom", "joblib", True),
        ("sklearn", "onnx", False),
        ("onnx", "joblib", False),
        ("xgboost", "xgboost-json", False),
    ],
)
def test_a_server_refuses_a_model_it_cannot_run(framework: str, file_format: str, served: bool) -> None:
    if served:
        FACTS.check_serves(manifest(framework, file_format))
        return
    with pytest.raises(ModelError, match="digits:3") as caught:
        FACTS.check_serves(manifest(framework, file_format))
    assert caught.value.status == 12


def test_a_server_with_the_users_handler_serves_whatever_it_takes() -> None:
    ServerFacts("python", "1", ("python",), (), {}).check_serves(manifest("custom", "custom"))


def test_an_input_that_the_signature_calls_optional_may_be_left_out() -> None:
    more = {"name": "z", "datatype": "FP64", "shape": [-1], "parameters": {"required": False}}
    model = loaded(lambda _m, i: {"y": np.full(1, len(i), float)}, signature=([IN, more], [OUT]))
    assert model.predict({"x": np.zeros((1, 2))})["y"] == [1]
    assert model.predict({"x": np.zeros((1, 2)), "z": np.zeros(1)})["y"] == [2]
    with pytest.raises(InputError, match="input missing: `x`"):
        model.predict({"z": np.zeros(1)})
