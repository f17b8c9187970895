"""`mlimg init`: for each format the spec that it writes checks, with the template made for that format."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import sklearn
import skops.io
import yaml
from sklearn.linear_model import LinearRegression

from mlimg.cli.main import run
from mlimg.template import builtin_templates, serving_template
from tests.support import formats
from tests.support.formats import MODELS

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "digits"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLIMG_SET", raising=False)
    return here


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def written(folder: Path) -> tuple[str, str]:
    """Template and source of the spec."""
    spec = yaml.safe_load((folder / "mlimg.yaml").read_text())
    return spec["server"]["template"], spec["model"]["source"]


def allow_what_init_speaks_of(folder: Path) -> None:
    """Say in the spec that its model is trusted, where it has a line for that."""
    spec = folder / "mlimg.yaml"
    spec.write_text(spec.read_text().replace("# allow_pickle", "allow_pickle"))


# By format: the template of ours that init proposes.
PROPOSED = {
    "onnx": "onnx",
    "safetensors": "pytorch",
    "transformers": "transformers",
    "gguf": "gguf",
    "torchscript": "pytorch",
    "torch-export": "pytorch",
    "savedmodel": "tensorflow",
    "keras": "tensorflow",
    "mlflow": "mlflow",
    "xgboost-ubj": "xgboost",
    "xgboost-json": "xgboost",
    "lightgbm": "lightgbm",
}


@pytest.mark.parametrize("where", ["model", "bert-v2"])
@pytest.mark.parametrize("name", MODELS)
def test_the_spec_for_each_format_checks(folder: Path, capfd: Capture, name: str, where: str) -> None:
    write(folder / where, MODELS[name][2])
    assert run(["init", where]) == 0
    assert written(folder) == (PROPOSED[name], f"./{where}")
    allow_what_init_speaks_of(folder)
    assert run(["check"]) == 0, capfd.readouterr().err


def test_every_template_that_serves_formats_is_proposed_or_gives_way_to_one_of_ours() -> None:
    proposed = {*PROPOSED.values(), "sklearn"}
    others = [template for template in builtin_templates() if template.formats and template.name not in proposed]
    for template in others:
        for served in template.formats:
            assert serving_template(served) in proposed, f"{template.name}: {served}"


def test_a_pickle_of_another_framework_is_for_a_handler_of_ones_own() -> None:
    assert serving_template("joblib", "sklearn") == "sklearn"
    assert serving_template("joblib", "xgboost") is None


@pytest.mark.parametrize("name", ["transformers", "mlflow", "savedmodel"])
def test_a_folder_that_is_a_model_is_found_by_its_main_file_whatever_it_is_called(folder: Path, name: str) -> None:
    write(folder / "zoo", MODELS[name][2])
    (folder / "data.csv").write_text("1,2\n")
    assert run(["init"]) == 0
    assert written(folder) == (PROPOSED[name], "./zoo")


def test_a_model_s_own_folder_is_no_place_for_the_spec(folder: Path, capfd: Capture) -> None:
    write(folder, formats.transformers())
    assert run(["init"]) == 12
    assert "from the folder above: `mlimg init digits`" in capfd.readouterr().err
    assert not (folder / "mlimg.yaml").exists()


def test_the_scikit_learn_that_saved_the_model_is_pinned(folder: Path, capfd: Capture) -> None:
    skops.io.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]), folder / "model.skops")
    assert run(["init"]) == 0
    spec = yaml.safe_load((folder / "mlimg.yaml").read_text())
    assert spec["server"]["requirements"] == [f"scikit-learn=={sklearn.__version__}"]
    capfd.readouterr()
    assert run(["check"]) == 0
    assert "was saved by" not in capfd.readouterr().err
    assert run(["check", "--set", "server.requirements=[]"]) == 0
    assert f"`server.requirements: [scikit-learn=={sklearn.__version__}]`" in capfd.readouterr().err
    assert run(["check", "--set", "server.requirements=[scikit-learn==0.24.2]"]) == 12
    assert (
        f"sklearn {sklearn.__version__}; the server's requirements have scikit-learn==0.24.2" in capfd.readouterr().err
    )


def test_a_pickle_inside_an_mlflow_model_is_spoken_of(folder: Path, capfd: Capture) -> None:
    data = pickle.dumps(LinearRegression())
    write(folder / "model", formats.mlflow(model="model.pkl", data=data, loader_module="mlflow.sklearn"))
    assert run(["init"]) == 0
    assert "# allow_pickle: true" in (folder / "mlimg.yaml").read_text()
    assert run(["check"]) == 12
    assert "`model.pkl` is a pickle file: loading it runs the code in it" in capfd.readouterr().err


def test_a_model_of_another_major_scikit_learn_is_refused_without_any_pin(folder: Path, capfd: Capture) -> None:
    now, then = sklearn.__version__.encode(), b"0" + sklearn.__version__.encode()[1:]
    (folder / "model.pkl").write_bytes(pickle.dumps(LinearRegression()).replace(now, then))
    assert run(["init"]) == 0
    allow_what_init_speaks_of(folder)
    assert run(["check", "--set", "server.requirements=[]"]) == 12
    assert f"was saved by sklearn {then.decode()}; the template serves models of sklearn 1" in capfd.readouterr().err
