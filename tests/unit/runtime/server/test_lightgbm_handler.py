"""The lightgbm template's handler on real boosters, through the server's own tensors."""

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
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
PAINT = pd.DataFrame(
    {
        "size": np.arange(80.0),
        "color": pd.Categorical(["red", "green", "blue", "red"] * 20),
        "coats": pd.Categorical([20, 10] * 40),
    }
)
PRICE = PAINT["color"].cat.codes * 10 + PAINT["size"] + PAINT["coats"].astype(int)


def serve(folder: Path, model: Any, **options: Any) -> LoadedModel:
    """Save what was trained, load it as a server does."""
    getattr(model, "booster_", model).save_model(folder / "model.txt")
    return load_template("lightgbm", folder, **options)


def classifier(data: Any, target: Any, **settings: Any) -> lightgbm.LGBMClassifier:
    return lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, **settings).fit(data, target)


def regressor(data: Any, target: Any, **settings: Any) -> lightgbm.LGBMRegressor:
    return lightgbm.LGBMRegressor(n_estimators=5, verbose=-1, **settings).fit(data, target)


@pytest.mark.parametrize("objective", [None, "multiclassova"])
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
@pytest.mark.parametrize("data", [CANCER, IRIS], ids=["binary", "multiclass"])
def test_a_classifier_answers_as_it_does_by_itself(tmp_path: Path, method: str, data: Any, objective: Any) -> None:
    trained = classifier(data.data, data.target, objective=objective if data is IRIS else None)
    model = serve(tmp_path, trained, method=method)
    (answer,) = ask(model, rows(data.data[::20]))
    np.testing.assert_array_equal(values(answer), getattr(trained, method)(pd.DataFrame(data.data[::20])))
    width, classes = data.data.shape[1], len(data.target_names)
    check_signature_of_classifier(model, method, "FP64", width=width, classes=classes)
    assert answer["datatype"] == model.metadata.outputs[0].datatype


def test_columns_come_by_name_in_any_order_or_as_one_table(tmp_path: Path) -> None:
    frame = pd.DataFrame(DIABETES.data, columns=DIABETES.feature_names)
    trained = regressor(frame, DIABETES.target)
    model = serve(tmp_path, trained)
    check_signature_of_columns(model, "FP64", DIABETES.feature_names)
    (columns,) = ask(model, *(rows(frame[name][::20], name) for name in reversed(DIABETES.feature_names)))
    (table,) = ask(model, rows(DIABETES.data[::20]))
    np.testing.assert_array_equal(values(columns), trained.predict(frame[::20]))
    assert columns["data"] == table["data"]
    with pytest.raises(ValueError, match="equal length"):
        ask(model, *(rows(frame[name][: 2 if name == "s1" else 1], name) for name in DIABETES.feature_names))


def test_a_missing_value_is_null(tmp_path: Path) -> None:
    trained = classifier(CANCER.data, CANCER.target)
    model = serve(tmp_path, trained, method="predict_proba")
    row = CANCER.data[:1].copy()
    row[0, 20:] = np.nan
    (answer,) = ask(model, missing(row))
    np.testing.assert_array_equal(values(answer), trained.booster_.predict(row)[:, None] * [-1, 1] + [1, 0])
    assert not np.array_equal(values(answer), model.predict({"input": CANCER.data[:1]})["predict_proba"])


def test_categories_are_sent_as_pandas_has_them(tmp_path: Path) -> None:
    trained = regressor(PAINT, PRICE, min_child_samples=1)
    model = serve(tmp_path, trained)
    assert [spec.to_json() for spec in model.metadata.inputs] == [
        {"name": "size", "datatype": "FP64", "shape": [-1]},
        {
            "name": "color",
            "datatype": "BYTES",
            "shape": [-1],
            "parameters": {"categories": ["blue", "green", "red"]},
        },
        {"name": "coats", "datatype": "FP64", "shape": [-1], "parameters": {"categories": [10, 20]}},
    ]
    colors = [*PAINT["color"].astype(str)[:-1], "violet"]  # the training had no violet
    tensors = rows(PAINT["size"], "size"), rows(PAINT["coats"].astype(int), "coats", "INT64")
    (answer,) = ask(model, *tensors, rows(colors, "color", "BYTES"))
    unknown = PAINT.assign(color=pd.Categorical([*colors[:-1], None], ["blue", "green", "red"]))
    np.testing.assert_array_equal(values(answer), trained.predict(unknown))


@pytest.mark.parametrize("explicit", [{}, {"categorical_feature": ["coats"]}], ids=["alone", "beside-another"])
def test_ordered_categories_whose_column_the_file_does_not_tell_are_refused(tmp_path: Path, explicit: Any) -> None:
    frame = pd.DataFrame({"grade": pd.Categorical(["a", "b"] * 40, ordered=True), "coats": [20, 10] * 40})
    trained = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1).fit(frame, PRICE, **explicit)
    with pytest.raises(ModelError, match="does not tell which columns its 1 lists of categories belong to"):
        serve(tmp_path, trained)


def test_a_model_that_stopped_early_is_saved_with_its_best_trees(tmp_path: Path) -> None:
    half = len(DIABETES.data) // 2
    unseen = DIABETES.data[half:]
    trained = lightgbm.LGBMRegressor(n_estimators=200, learning_rate=0.3, verbose=-1)
    stop = lightgbm.early_stopping(20, verbose=False)
    trained.fit(
        DIABETES.data[:half],
        DIABETES.target[:half],
        eval_X=(unseen,),
        eval_y=(DIABETES.target[half:],),
        callbacks=[stop],
    )
    model = serve(tmp_path, trained)
    (answer,) = ask(model, rows(unseen))
    np.testing.assert_array_equal(values(answer), trained.booster_.predict(unseen))
    assert model.model.booster.num_trees() == trained.best_iteration_ < 180


@pytest.mark.parametrize(
    "settings",
    [
        {"boosting_type": "dart"},
        {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"objective": "quantile", "alpha": 0.9},
        {"objective": "poisson"},
        {"linear_tree": True},
    ],
    ids=["dart", "forest", "quantile", "poisson", "linear"],
)
def test_other_boosters_and_objectives_answer_as_they_do_by_themselves(tmp_path: Path, settings: Any) -> None:
    trained = regressor(DIABETES.data, DIABETES.target, **settings)
    (answer,) = ask(serve(tmp_path, trained), rows(DIABETES.data[:9]))
    np.testing.assert_array_equal(values(answer), trained.booster_.predict(DIABETES.data[:9]))


def test_a_regression_has_no_probabilities(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="regression, which gives no probabilities"):
        serve(tmp_path, regressor(DIABETES.data, DIABETES.target), method="predict_proba")


@pytest.mark.parametrize("kept", [0, 5, 40, 0.3, 0.9, -40], ids=str)
def test_g13_a_file_that_was_cut_is_one_line(tmp_path: Path, kept: float) -> None:
    """LightGBM's own reader would not return from some of them."""
    path = tmp_path / "model.txt"
    classifier(IRIS.data, IRIS.target).booster_.save_model(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else int(kept)])
    with pytest.raises(ModelError, match=r"is damaged|is empty|is no model") as caught:
        load_template("lightgbm", tmp_path)
    assert caught.value.status == 12
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.4), (0.3, 0.3002), (0.2, 0.9)], ids=str)
def test_g13_a_file_with_a_hole_is_one_line(tmp_path: Path, start: float, end: float) -> None:
    path = tmp_path / "model.txt"
    classifier(IRIS.data, IRIS.target).booster_.save_model(path)
    whole = path.read_bytes()
    trees = whole.index(b"end of trees")
    path.write_bytes(whole[: int(start * trees)] + whole[int(end * trees) :])
    with pytest.raises(ModelError, match="is damaged: its trees are not of the sizes"):
        load_template("lightgbm", tmp_path)


def test_a_model_that_learned_nothing_is_served(tmp_path: Path) -> None:
    trained = lightgbm.train({"verbose": -1}, lightgbm.Dataset(IRIS.data[:30], IRIS.target[:30] * 0.0), 1)
    (answer,) = ask(serve(tmp_path, trained), rows(IRIS.data[:2]))
    np.testing.assert_array_equal(values(answer), trained.predict(IRIS.data[:2]))


@pytest.mark.parametrize("data", [b"not a model", b"\x80\x04.", b"tree\nversion=v4\n\xff", b'{"learner":{}}'])
def test_g13_another_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.txt").write_bytes(data)
    with pytest.raises(ModelError, match=r"is damaged|is no model") as caught:
        load_template("lightgbm", tmp_path)
    assert "\n" not in caught.value.message


def test_a_model_of_another_major_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    classifier(IRIS.data, IRIS.target).booster_.save_model(path)
    path.write_bytes(path.read_bytes().replace(b"version=v4", b"version=v3"))
    with pytest.raises(ModelError, match=r"was saved by LightGBM 3, this server has 4\.") as caught:
        load_template("lightgbm", tmp_path)
    assert caught.value.status == 12
