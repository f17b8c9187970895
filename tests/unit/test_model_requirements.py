"""Packages that the model names become the server's."""

from pathlib import Path

import pytest

from mlimg.material import check
from mlimg.runtime.errors import ModelError
from mlimg.spec.load import load_spec

SPEC = """\
image: registry.example.com/serving/wine
server:
  template: ./template
  code: ./serve
  requirements: [scikit-learn==1.7.1, lime]
model:
  version: "1"
  source: ./model
"""
TEMPLATE = """\
name: whole
version: "1"
description: models that name their packages
base: python:3.13-slim
model_requirements:
  file: packages.txt
  instead: {mlflow: mlflow-skinny}
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """The file of the model that names its packages."""
    files = {
        "mlimg.yaml": SPEC,
        "template/template.yaml": TEMPLATE,
        "serve/handler.py": "def load(model_dir, options): ...\ndef predict(model, inputs): ...\n",
        "model/weights.bin": "weights",
        "model/packages.txt": "MLflow==3.17.2\nscikit_learn==1.7.2\nnumpy<3  # a comment\nmlflow-export[all]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "model" / "packages.txt"


def required(packages: Path) -> tuple[str, ...]:
    return check(load_spec(packages.parent.parent)).material.requirements


def refused(packages: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        required(packages)
    return caught.value


def test_the_models_packages_come_with_the_specs_which_decide(packages: Path) -> None:
    ours = ("scikit-learn==1.7.1", "lime")
    assert required(packages) == ("mlflow-skinny==3.17.2", "numpy<3", "mlflow-export[all]", *ours)


@pytest.mark.parametrize("line", ["-e ./code", "./wheels/own.whl", "--extra-index-url https://user:secret@example.com"])
def test_what_is_no_package_is_refused_with_its_line(packages: Path, line: str) -> None:
    packages.write_text(f"numpy\n{line}\n")
    error = refused(packages)
    assert error.message.startswith("packages.txt:2:1: ")
    assert "secret" not in f"{error.message}{error.hint}"


def test_several_such_lines_are_told_together(packages: Path) -> None:
    packages.write_text("-e a\n-e b\n")
    assert [line.partition(" ")[0] for line in refused(packages).log] == ["packages.txt:1:1:", "packages.txt:2:1:"]


def test_a_model_without_the_file_is_refused(packages: Path) -> None:
    packages.unlink()
    assert refused(packages).message == "the model has no `packages.txt`, which names the packages it needs"


def test_a_file_that_is_no_text_is_refused(packages: Path) -> None:
    packages.write_bytes(b"numpy\xff")
    assert refused(packages).message == "`packages.txt` is not UTF-8"
    packages.write_bytes(b"#" * (2**20 + 1))
    assert refused(packages).message.startswith("`packages.txt` is over 1 MiB")


def test_an_address_is_the_specs_to_decide(packages: Path) -> None:
    packages.write_text("lime @ https://files.example.com/lime-1.whl\n")
    assert required(packages) == ("scikit-learn==1.7.1", "lime")
    packages.write_text("lemon @ https://files.example.com/lemon-1.whl\n")
    with pytest.raises(ModelError, match=r"`packages\.txt` takes lemon from an address"):
        required(packages)
