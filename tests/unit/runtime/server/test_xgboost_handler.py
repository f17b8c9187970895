"""The xgboost template's handler on real boosters, through the server's own tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.model import LoadedModel
from tests.support.handlers import (
    ask,
    check_signature_of_classifier,
    check_signature_of_columns,
    load_template,
    missing,
    rows,
    values,
)

CANCER, DIABETES, IRIS = load_breast_cancer(), load_diabetes(), load_iris()


def serve(folder: Path, model: Any, name: str = "model.json", **options: Any) -> LoadedModel:
    """Save what was trained, load it as a server does."""
    kind = "ubj" if name.endswith("ubj") else "json"
    saved = folder / f"saved.{kind}"
    model.save_model(saved)
    saved.rename(folder / name)
    return load_template("xgboost", folder, **options)


def classifier(data: Any, target: Any, **settings: Any) -> xgboost.XGBClassifier:
    return xgboost.XGBClassifier(n_estimators=5, max_depth=3, **settings).fit(data, target)


@pytest.mark.parametrize("name", ["model.json", "model.ubj", "a-json-file.bin", "sub.ubj"])
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
@pytest.mark.parametrize("data", [CANCER, IRIS], ids=["binary", "multiclass"])
def test_a_classifier_answers_as_it_does_by_itself(tmp_path: Path, name: str, method: str, data: Any) -> None:
    trained = classifier(data.data, data.target)
    model = serve(tmp_path, trained, name, method=method)
    (answer,) = ask(model, rows(data.data[::20]))
    np.testing.assert_array_equal(values(answer), getattr(trained, method)(data.data[::20]))
    width, classes = data.data.shape[1], len(data.target_names)
    check_signature_of_classifier(model, method, "FP32", width=width, classes=classes)
    assert answer["datatype"] == model.metadata.outputs[0].datatype


def test_columns_come_by_name_in_any_order_or_as_one_table(tmp_path: Path) -> None:
    frame = pd.DataFrame(DIABETES.data, columns=DIABETES.feature_names)
    trained = xgboost.XGBRegressor(n_estimators=5).fit(frame, DIABETES.target)
    model = serve(tmp_path, trained)
    check_signature_of_columns(model, "FP32", DIABETES.feature_names)
    (columns,) = ask(model, *(rows(frame[name][::20], name) for name in reversed(DIABETES.feature_names)))
    (table,) = ask(model, rows(DIABETES.data[::20]))
    np.testing.assert_array_equal(values(columns), trained.predict(frame[::20]))
    assert columns["data"] == table["data"]


def test_a_missing_value_is_null(tmp_path: Path) -> None:
    trained = classifier(CANCER.data, CANCER.target)
    model = serve(tmp_path, trained, method="predict_proba")
    row = CANCER.data[:1].copy()
    row[0, 20:] = np.nan
    (answer,) = ask(model, missing(row))
    np.testing.assert_array_equal(values(answer), trained.predict_proba(row))
    assert not np.array_equal(values(answer), trained.predict_proba(CANCER.data[:1]))


def test_categories_are_their_codes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"color": pd.Categorical(["red", "green", "blue", "red"] * 20), "size": range(80)})
    trained = xgboost.XGBRegressor(n_estimators=5, enable_categorical=True, min_child_weight=0)
    trained.fit(frame, frame["color"].cat.codes * 10 + frame["size"])
    model = serve(tmp_path, trained)
    (answer,) = ask(model, rows(frame["color"].cat.codes, "color", "INT8"), rows(frame["size"], "size", "INT64"))
    np.testing.assert_array_equal(values(answer), trained.predict(frame))


def test_a_model_that_stopped_early_answers_with_its_best_trees(tmp_path: Path) -> None:
    half = len(DIABETES.data) // 2
    trained = xgboost.XGBRegressor(n_estimators=60, early_stopping_rounds=20)
    trained.fit(
        DIABETES.data[:half],
        DIABETES.target[:half],
        eval_set=[(DIABETES.data[half:], DIABETES.target[half:])],
        verbose=0,
    )
    every = trained.get_booster().predict(xgboost.DMatrix(DIABETES.data[half:]))
    (answer,) = ask(serve(tmp_path, trained), rows(DIABETES.data[half:]))
    np.testing.assert_array_equal(values(answer), trained.predict(DIABETES.data[half:]))
    assert not np.array_equal(values(answer), every)


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_a_booster_trained_to_name_classes_knows_their_probabilities_too(tmp_path: Path, method: str) -> None:
    matrix = xgboost.DMatrix(IRIS.data, IRIS.target)
    settings = {"num_class": 3, "seed": 0}
    named = xgboost.train({"objective": "multi:softmax", **settings}, matrix, 5)
    likely = xgboost.train({"objective": "multi:softprob", **settings}, matrix, 5)
    (answer,) = ask(serve(tmp_path, named, method=method), rows(IRIS.data))
    np.testing.assert_array_equal(values(answer), (named if method == "predict" else likely).predict(matrix))


@pytest.mark.parametrize(
    "settings",
    [{"booster": "gblinear"}, {"booster": "dart"}, {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]}],
    ids=["linear", "dart", "quantiles"],
)
def test_other_boosters_and_objectives_answer_as_they_do_by_themselves(tmp_path: Path, settings: Any) -> None:
    trained = xgboost.XGBRegressor(n_estimators=5, **settings).fit(DIABETES.data, DIABETES.target)
    model = serve(tmp_path, trained)
    (answer,) = ask(model, rows(DIABETES.data[:9]))
    # XGBRegressor sums dart's trees in place, in another order than a matrix's.
    np.testing.assert_allclose(values(answer), trained.predict(DIABETES.data[:9]), rtol=1e-6)
    assert model.metadata.outputs[0].shape == (-1, *np.shape(trained.predict(DIABETES.data[:9]))[1:])


def test_several_labels_are_a_column_each(tmp_path: Path) -> None:
    labels = np.column_stack([IRIS.target == 0, IRIS.target == 1]).astype(int)
    trained = classifier(IRIS.data, labels)
    for method in ("predict", "predict_proba"):
        (answer,) = ask(serve(tmp_path, trained, method=method), rows(IRIS.data))
        np.testing.assert_array_equal(values(answer), getattr(trained, method)(IRIS.data))


def test_a_regression_has_no_probabilities(tmp_path: Path) -> None:
    trained = xgboost.XGBRegressor(n_estimators=2).fit(DIABETES.data, DIABETES.target)
    with pytest.raises(ModelError, match="reg:squarederror, which gives no probabilities"):
        serve(tmp_path, trained, method="predict_proba")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (rows([[1.0, 2.0]]), "shape"),
        (rows([["a", "b", "c", "d"]], datatype="BYTES"), "BYTES"),
        (rows([[1.0, 2.0, 3.0, 4.0]], "other"), "unknown input"),
    ],
)
def test_h1_what_the_booster_does_not_take_is_the_clients_mistake(
    tmp_path: Path, tensor: dict[str, Any], message: str
) -> None:
    model = serve(tmp_path, classifier(IRIS.data, IRIS.target))
    with pytest.raises(ValueError, match=message):
        ask(model, tensor)


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    model = serve(tmp_path, xgboost.XGBRegressor(n_estimators=1).fit(frame, [0, 1]))
    with pytest.raises(ValueError, match="equal length"):
        ask(model, rows([1.0], "a"), rows([1.0, 2.0], "b"))


@pytest.mark.parametrize("name", ["model.json", "model.ubj"])
@pytest.mark.parametrize("kept", [0, 5, 40, 0.3, 0.9, -1], ids=str)
def test_g13_a_file_that_was_cut_is_one_line_and_never_read_past_its_end(
    tmp_path: Path, name: str, kept: float
) -> None:
    classifier(IRIS.data, IRIS.target).save_model(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else int(kept)])
    with pytest.raises(ModelError, match=r"is damaged|is empty|is no model") as caught:
        load_template("xgboost", tmp_path)
    assert caught.value.status == 12
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "data", [b"not a model", b"\x80\x04.", b"tree\nversion=v4\n", b'{"learner":{},"version":[3,0,0]}']
)
def test_g13_another_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.json").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        load_template("xgboost", tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["model.json", "model.ubj"])
def test_a_model_of_another_major_version_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    classifier(IRIS.data, IRIS.target).save_model(path)
    if name.endswith("json"):
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "version": [2, 1, 4]}))
    else:
        path.write_bytes(path.read_bytes()[:-7] + b"i\x02i\x01i\x04}")
    with pytest.raises(ModelError, match=r"was saved by XGBoost 2, this server has 3\.") as caught:
        load_template("xgboost", tmp_path)
    assert caught.value.status == 12
