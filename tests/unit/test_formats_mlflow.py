"""MLflow's folders: what their MLmodel says, and what of them runs code."""

import io
from pathlib import Path

import pytest
import yaml

from mlimg.formats import Detected, check_formats, detect
from mlimg.runtime.errors import ModelError
from mlimg.sources.local import open_source

ABOUT = {
    "flavors": {
        "python_function": {"loader_module": "mlflow.lightgbm", "data": "model.lgb", "code": None},
        "lightgbm": {"data": "model.lgb"},
    },
    "mlflow_version": "3.17.2",
}
BOOSTER = b"tree\nversion=v4\nend of parameters\n"


def checked(folder: Path, files: dict[str, bytes], *, allow_pickle: bool = False) -> Detected:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    source = open_source(folder, follow_links=False, allowed=(folder,))
    found = detect(source, source.inventory())
    return check_formats(found, ("mlflow",), allow_pickle=allow_pickle, template_versions=("2", "3"))


def about(**function: object) -> bytes:
    """An MLmodel whose `python_function` says this, too."""
    text = io.StringIO()
    flavours = ABOUT["flavors"]
    assert isinstance(flavours, dict)
    changed = {**flavours, "python_function": {**flavours["python_function"], **function}}
    yaml.safe_dump({**ABOUT, "flavors": changed}, text)
    return text.getvalue().encode()


def test_the_folder_is_the_model_and_tells_its_version(tmp_path: Path) -> None:
    found = checked(tmp_path, {"MLmodel": about(), "model.lgb": BOOSTER})
    assert (found.framework, found.format, found.path.name) == ("mlflow", "mlflow", "MLmodel")
    assert (found.version, found.needs_pickle) == ("3.17.2", False)


@pytest.mark.parametrize(
    ("function", "extra"),
    [
        ({"code": "code"}, {"code/own.py": b"x = 1\n"}),
        ({"model_code_path": "/home/me/model.py"}, {}),
        ({"loader_module": "own.loader"}, {}),
        ({"data": "model.pkl"}, {"model.pkl": b"\x80\x04K\x01."}),
    ],
    ids=["files", "from-code", "loader", "pickle"],
)
def test_code_of_the_model_needs_to_be_allowed(
    tmp_path: Path, function: dict[str, object], extra: dict[str, bytes]
) -> None:
    files = {"MLmodel": about(**function), "model.lgb": BOOSTER, **extra}
    with pytest.raises(ModelError, match="runs the code in it"):
        checked(tmp_path, files)
    assert checked(tmp_path, files, allow_pickle=True).needs_pickle


def test_types_that_skops_is_told_to_trust_are_code(tmp_path: Path) -> None:
    text = about() + b"\n" + yaml.safe_dump({"metadata": None}).encode()
    trusting = text.replace(b"  lightgbm:\n", b"  lightgbm:\n    skops_trusted_types: [os.system]\n")
    assert trusting != text
    with pytest.raises(ModelError, match="runs the code in it"):
        checked(tmp_path, {"MLmodel": trusting, "model.lgb": BOOSTER})


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"MLmodel": b""}, "it is empty"),
        ({"MLmodel": b"flavors: {lightgbm: {}}\n"}, "it has no flavour `python_function`"),
        ({"MLmodel": b"a text\n"}, "its content is not that of mlflow"),
        ({"MLmodel": about()}, "`model.lgb`, which it names, is not there"),
        ({"MLmodel": about(), "model.lgb": BOOSTER[:20]}, "it has no end"),
        ({"MLmodel": about().replace(b"3.17.2", b"1.30.0"), "model.lgb": BOOSTER}, "was saved by mlflow 1.30.0"),
    ],
    ids=["empty", "no-function", "text", "missing", "cut", "old"],
)
def test_a_bad_model_is_refused(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(ModelError) as refused:
        checked(tmp_path, files)
    assert said in refused.value.message
