"""`docs/templates.md`: its example is a template, and its tables are complete."""

import re
from pathlib import Path

import pytest

from mlimg.dockerfile import FILE_FILTERS, FILTERS
from mlimg.render import render
from mlimg.template import find_template
from mlimg.template_yaml import Health, Manifest, OptionEntry
from tests.support.plans import base_image, server_plan

TEXT = (Path(__file__).parents[2] / "docs" / "templates.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```\w+\n(?:# |\{# )(onnx/\S+)(?: #\})?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FENCE.findall(TEXT):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "onnx"


def test_the_example_renders(folder: Path) -> None:
    template = find_template("./onnx", lambda _written: folder)
    plan = server_plan(template, options={"threads": "4"})
    assert plan.options["threads"] == 4
    context = render(plan, base_image())
    assert "\nSTOPSIGNAL SIGTERM\nRUN apt-get update" in context.dockerfile
    assert "onnxruntime>=1.20" in next(f.data.decode() for f in context.files if f.path.name == "requirements.txt")
    compile((folder / "handler.py").read_text(), "handler.py", "exec")


def test_the_example_renders_without_its_dockerfile(folder: Path) -> None:
    (folder / "Dockerfile.j2").unlink()
    template = find_template("./onnx", lambda _written: folder)
    assert "apt-get" not in render(server_plan(template), base_image()).dockerfile


def test_the_server_that_is_not_pythons_renders(folder: Path) -> None:
    (dockerfile,) = re.findall(r"^```jinja\n(FROM .*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"`(command: \[exec, .*?\])`", TEXT)
    (folder / "Dockerfile.j2").write_text(dockerfile)
    (folder / "handler.py").unlink()
    with (folder / "template.yaml").open("a") as manifest:
        manifest.write(command + "\n")
    template = find_template("./onnx", lambda _written: folder)
    expected = render(server_plan(template), base_image()).expected
    assert expected.cmd == ("exec", "--", "tritonserver", "--model-repository=/models")


@pytest.mark.parametrize(
    "name", [*FILTERS, *FILE_FILTERS, *Manifest.model_fields, *Health.model_fields, *OptionEntry.model_fields]
)
def test_everything_there_is_to_write_is_documented(name: str) -> None:
    assert f"`{name}`" in TEXT
