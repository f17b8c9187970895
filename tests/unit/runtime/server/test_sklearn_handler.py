"""The sklearn template's handler on real estimators, through the server's own tensors."""

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import MlimgError, ModelError
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile, ModelManifest, model_path
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.model import LoadedModel
from tests.support.handlers import ask, load_template, rows

IRIS = load_iris()
FRAME = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0], "color": ["red", "green", "red", "green"]})


class Unknown(BaseEstimator):  # type: ignore[misc]
    """A type that skops has never heard of."""

    def predict(self, rows: Any) -> Any:
        return rows[:, 0]


def serve(folder: Path, estimator: Any, method: str = "predict", name: str = "model.joblib") -> LoadedModel:
    """Save an estimator, load it as a server does, warm it up."""
    (skops.io if name.endswith(".skops") else joblib).dump(estimator, folder / name)
    return load(folder, method)


def load(folder: Path, method: str = "predict") -> LoadedModel:
    return load_template("sklearn", folder, method=method)


@pytest.mark.parametrize("name", ["model.joblib", "model.skops", "estimator.pkl", "no-ending"])
def test_an_estimator_predicts_as_it_does_by_itself(tmp_path: Path, name: str) -> None:
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(IRIS.data, IRIS.target)
    model = serve(tmp_path, estimator, "predict_proba", name)
    (answer,) = ask(model, rows(IRIS.data[::30]))
    assert answer["name"] == "predict_proba"
    expected = estimator.predict_proba(IRIS.data[::30])
    np.testing.assert_array_equal(np.reshape(answer["data"], answer["shape"]), expected)
    assert [spec.to_json() for spec in model.metadata.outputs] == [
        {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3], "parameters": {"classes": [0, 1, 2]}}
    ]


def test_labels_that_are_texts_are_bytes_tensors(tmp_path: Path) -> None:
    estimator = LogisticRegression(max_iter=1000).fit(IRIS.data, IRIS.target_names[IRIS.target])
    model = serve(tmp_path, estimator)
    (answer,) = ask(model, rows(IRIS.data[:1]))
    assert (answer["datatype"], answer["data"]) == ("BYTES", ["setosa"])
    assert model.metadata.outputs[0].datatype == "BYTES"


def test_columns_become_a_data_frame_in_the_order_of_the_training(tmp_path: Path) -> None:
    encode = make_column_transformer((OneHotEncoder(), ["color"]), (StandardScaler(), ["size"]))
    estimator = make_pipeline(encode, LinearRegression()).fit(FRAME, [1, 2, 3, 4])
    model = serve(tmp_path, estimator)
    assert [spec.to_json() for spec in model.metadata.inputs] == [{"name": n, "shape": [-1]} for n in ("size", "color")]
    color, size = rows(FRAME["color"], "color", "BYTES"), rows(FRAME[["size"]], "size")
    (answer,) = ask(model, color, size)
    np.testing.assert_allclose(answer["data"], estimator.predict(FRAME))


ENCODE = make_column_transformer((OneHotEncoder(), ["color"]), (StandardScaler(), ["size"]))
WITH_CATEGORY = FRAME.astype({"color": "category"})


@pytest.mark.parametrize(
    ("estimator", "frame"),
    [
        (GridSearchCV(make_pipeline(ENCODE, LogisticRegression()), {"logisticregression__C": [1, 10]}, cv=2), FRAME),
        (HistGradientBoostingClassifier(min_samples_leaf=1), WITH_CATEGORY),
    ],
    ids=["search", "categories"],
)
def test_texts_reach_an_estimator_that_takes_them_further_within(tmp_path: Path, estimator: Any, frame: Any) -> None:
    estimator.fit(frame, [0, 1, 0, 1])
    color, size = rows(FRAME["color"], "color", "BYTES"), rows(FRAME["size"], "size")
    (answer,) = ask(serve(tmp_path, estimator, "predict_proba"), color, size)
    np.testing.assert_allclose(np.reshape(answer["data"], answer["shape"]), estimator.predict_proba(frame))
    with pytest.raises(ValueError, match="refuses the input"):
        ask(load(tmp_path), rows(["big"] * 4, "size", "BYTES"), color)


def test_an_estimator_of_numeric_columns_takes_a_table_too(tmp_path: Path) -> None:
    frame = pd.DataFrame(IRIS.data, columns=["a", "b", "c", "d"])
    estimator = LogisticRegression(max_iter=1000).fit(frame, IRIS.target)
    model = serve(tmp_path, estimator)
    assert {spec.datatype for spec in model.metadata.inputs} == {"FP64"}
    (table,) = ask(model, rows(IRIS.data[::10]))
    (columns,) = ask(model, *(rows(frame[name][::10], name) for name in "dcba"))
    assert table["data"] == columns["data"] == estimator.predict(frame[::10]).tolist()


def test_a_text_classifier_takes_texts(tmp_path: Path) -> None:
    estimator = make_pipeline(CountVectorizer(), MultinomialNB()).fit(["good day", "bad night"], ["+", "-"])
    (answer,) = ask(serve(tmp_path, estimator), rows(["a good one"], datatype="BYTES"))
    assert answer["data"] == ["+"]


def test_several_targets_are_several_outputs(tmp_path: Path) -> None:
    targets = np.column_stack([IRIS.target, IRIS.target == 1])
    estimator = MultiOutputClassifier(LogisticRegression(max_iter=1000)).fit(IRIS.data, targets)
    answers = ask(serve(tmp_path, estimator, "predict_proba"), rows(IRIS.data[:2]))
    assert [(answer["name"], answer["shape"]) for answer in answers] == [
        ("predict_proba_0", [2, 3]),
        ("predict_proba_1", [2, 2]),
    ]


def test_several_labels_of_a_row_stand_side_by_side(tmp_path: Path) -> None:
    estimator = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression()))
    estimator.fit(IRIS.data, np.column_stack([IRIS.target == 1, IRIS.target > 0]).astype(int))
    model = serve(tmp_path, estimator)
    assert [spec.to_json() for spec in model.metadata.outputs] == [
        {"name": "predict", "datatype": "INT64", "shape": [-1, 2]}
    ]
    (answer,) = ask(model, rows(IRIS.data[::30]))
    assert np.reshape(answer["data"], answer["shape"]).tolist() == estimator.predict(IRIS.data[::30]).tolist()


@pytest.mark.parametrize(("targets", "shape"), [(IRIS.target, [-1]), (IRIS.data[:, :2], [-1, 2])], ids=["one", "two"])
def test_the_targets_of_a_regression_are_told(tmp_path: Path, targets: Any, shape: list[int]) -> None:
    model = serve(tmp_path, LinearRegression().fit(IRIS.data, targets))
    assert [spec.to_json() for spec in model.metadata.outputs] == [
        {"name": "predict", "datatype": "FP64", "shape": shape}
    ]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (rows([[1.0, 2.0]]), "shape"),
        (rows([["a", "b", "c", "d"]], datatype="BYTES"), "BYTES"),
        ({**rows([[1.0, 2.0, 3.0, 4.0]]), "data": [None, 2, 3, 4]}, "NaN"),
        (rows([[1.0, 2.0, 3.0, 4.0]], "other"), "unknown input"),
    ],
)
def test_h1_what_the_estimator_does_not_take_is_the_clients_mistake(
    tmp_path: Path, tensor: dict[str, Any], message: str
) -> None:
    model = serve(tmp_path, LogisticRegression(max_iter=1000).fit(IRIS.data, IRIS.target))
    with pytest.raises(ValueError, match=message):
        ask(model, tensor)


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    model = serve(tmp_path, LinearRegression().fit(FRAME[["size"]].assign(other=1.0), [1, 2, 3, 4]))
    with pytest.raises(ValueError, match="equal length"):
        ask(model, rows([1.0], "size"), rows([1.0, 2.0], "other"))


def test_a_server_without_pandas_serves_plain_arrays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = LinearRegression().fit(IRIS.data[:, :2], IRIS.target)
    columns = LinearRegression().fit(FRAME[["size"]], [1, 2, 3, 4])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "pandas")
    model = serve(tmp_path, arrays)
    assert ask(model, rows(IRIS.data[:3, :2]))[0]["shape"] == [3]
    with pytest.raises(InputError, match="one tensor"):
        model.handler.predict(model.model, {"size": np.ones(1), "other": np.ones(1)})
    with pytest.raises(ModelError, match="named columns") as caught:
        serve(tmp_path, columns)  # in the place of the other
    assert caught.value.status == 12


def test_an_estimator_without_the_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no predict_proba"):
        serve(tmp_path, LinearRegression().fit([[1.0]], [1.0]), "predict_proba")


def test_skops_types_that_nobody_trusts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Unknown") as caught:
        serve(tmp_path, Unknown(), name="model.skops")
    assert "allow_pickle" in caught.value.hint


@pytest.mark.parametrize(("file_format", "loads"), [("joblib", True), ("skops", False)])
def test_a_pickle_is_loaded_only_where_the_manifest_says_so(tmp_path: Path, file_format: str, loads: bool) -> None:
    files = (ModelFile(model_path("model.joblib"), 1, Digest.of(b"1")),)
    (tmp_path / MANIFEST_NAME).write_bytes(ModelManifest("m", "1", "sklearn", file_format, files).to_bytes())
    estimator = LinearRegression().fit([[1.0]], [1.0])
    if loads:
        serve(tmp_path, estimator)
    else:
        with pytest.raises(ModelError, match="is a pickle"):
            serve(tmp_path, estimator)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_what_was_not_verified_is_never_unpickled(tmp_path: Path, with_manifest: bool) -> None:
    """Hidden files are no part of a model: volumes bring theirs, and so could others."""
    joblib.dump(LinearRegression().fit([[1.0]], [1.0]), tmp_path / "model.joblib")
    (tmp_path / "..data").mkdir()
    joblib.dump(Unknown(), tmp_path / "..data" / "evil.joblib")
    joblib.dump(Unknown(), tmp_path / ".evil.joblib")
    if with_manifest:
        files = (ModelFile(model_path("model.joblib"), 1, Digest.of(b"1")),)
        (tmp_path / MANIFEST_NAME).write_bytes(ModelManifest("m", "1", "sklearn", "joblib", files).to_bytes())
        (tmp_path / "unnamed.joblib").write_bytes((tmp_path / ".evil.joblib").read_bytes())
    assert type(load(tmp_path).model.estimator) is LinearRegression


def test_a_folder_with_two_estimators_is_refused(tmp_path: Path) -> None:
    estimator = LinearRegression().fit([[1.0]], [1.0])
    joblib.dump(estimator, tmp_path / "one.joblib")
    joblib.dump(estimator, tmp_path / "two.joblib")
    with pytest.raises(ModelError, match=r"one\.joblib, two\.joblib"):
        load(tmp_path)
    (tmp_path / "two.joblib").unlink()
    load(tmp_path)


@pytest.mark.parametrize("name", ["weights", "sub/model.joblib", "model.gz"])
def test_the_estimator_is_found_by_its_content_as_the_build_found_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    joblib.dump(LinearRegression().fit([[1.0]], [1.0]), path)
    (tmp_path / "notes.txt").write_text("not the estimator")
    load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"PK\x03\x04", b"\x80\x04."])
def test_g13_a_damaged_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.joblib").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message


class SavedElsewhere(LinearRegression):  # type: ignore[misc]
    """Pickled as if by another version of scikit-learn."""

    version = "1.0.0"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sklearn_version": self.version}


# scikit-learn compares versions only of what it takes for its own.
SavedElsewhere.__module__ = "sklearn.linear_model"


@pytest.mark.parametrize(("version", "loads"), [("1.0.0", True), ("0.24.2", False)])
def test_another_version_of_scikit_learn_warns_and_another_major_one_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: str,
    loads: bool,
) -> None:
    monkeypatch.setattr("sklearn.linear_model.SavedElsewhere", SavedElsewhere, raising=False)
    monkeypatch.setattr(SavedElsewhere, "version", version)
    estimator = SavedElsewhere().fit([[1.0]], [1.0])
    if loads:
        serve(tmp_path, estimator)
        assert f"saved by scikit-learn {version}" in caplog.text
    else:
        with pytest.raises(MlimgError, match=f"saved by scikit-learn {version}") as caught:
            serve(tmp_path, estimator)
        assert caught.value.status == 12
