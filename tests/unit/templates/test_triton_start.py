"""The repository that the triton template lays out for Triton, which cannot be run here."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mlimg.runtime.errors import ModelError
from mlimg.template import templates_folder


@pytest.fixture
def start() -> ModuleType:
    spec = importlib.util.spec_from_file_location("triton_start", templates_folder() / "triton" / "start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_repository_leads_to_the_model_and_copies_nothing(start: ModuleType, tmp_path: Path) -> None:
    model = tmp_path / "models"
    model.mkdir()
    (model / 'a "b".onnx').write_bytes(b"graph")
    (model / "weights.data").write_bytes(b"weights")
    start.lay_out(tmp_path / "repository" / "digits", model, "max_batch_size: 0\n")
    version = tmp_path / "repository" / "digits" / "1"
    assert version.readlink() == model
    written = (version.parent / "config.pbtxt").read_text()
    assert written == 'max_batch_size: 0\ndefault_model_filename: "a \\"b\\".onnx"\n'


@pytest.mark.parametrize("names", [[], ["a.onnx", "b.onnx"]])
def test_a_folder_without_one_model_is_refused(start: ModuleType, tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"expected one \.onnx file, found"):
        start.lay_out(tmp_path / "repository" / "digits", tmp_path, "")
