"""A spec is found, read, typed, and told with places when it is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlimg.runtime.errors import LocalIOError, SpecError
from mlimg.spec.load import load_spec
from mlimg.spec.problems import MAX_SHOWN, Code, InvalidSpecError
from mlimg.spec.schema import Pattern

from .conftest import SMALLEST, Load, with_value

FULL = """\
image: registry.example.com/serving/digits
pattern: in-image
server:
  template: sklearn
  image: registry.example.com/serving/sklearn
  version: "1.0"
  base: python:3.13-slim
  requirements: [scikit-learn==1.7.2]
  code: ./serve
  options: {method: predict_proba, threads: 4, threshold: 0.50, verbose: true, outputs: [a, 1]}
  env: {OMP_NUM_THREADS: "2"}
model:
  name: digits
  version: 3
  source: ./model
  store: oci://registry.example.com/models
  allow_pickle: true
  follow_links: false
build:
  platform: linux/amd64
  index: https://mirror.example.com/simple
  secrets: [netrc]
  insecure_registries: [registry.lab:5000]
"""


def test_the_smallest_spec_has_defaults_for_the_rest(load: Load, folder: Path) -> None:
    loaded = load(SMALLEST)
    assert loaded.spec.server.template == "sklearn"
    assert (loaded.spec.pattern, loaded.spec.server.version, loaded.spec.model.store) == (None, None, None)
    assert loaded.spec.build.secrets == ()
    assert loaded.path == folder / "mlimg.yaml"
    assert loaded.project == folder


def test_every_key_is_typed(load: Load) -> None:
    spec = load(FULL).spec
    assert spec.pattern is Pattern.IN_IMAGE
    assert spec.server.options == {
        "method": "predict_proba",
        "threads": 4,
        "threshold": 0.5,
        "verbose": True,
        "outputs": ("a", 1),
    }
    assert spec.model.version == "3"
    assert spec.model.allow_pickle is True
    assert spec.build.insecure_registries == ("registry.lab:5000",)


def test_origins_name_the_place_of_each_written_value_and_no_default(load: Load) -> None:
    origins = load(FULL).origins
    assert origins["server.version"] == "mlimg.yaml:6:12"
    assert origins["server.env.OMP_NUM_THREADS"] == "mlimg.yaml:11:26"
    assert origins["server.requirements"] == "mlimg.yaml:8:17"
    assert "server.version" not in load(SMALLEST).origins


def test_a_folder_stands_for_the_spec_in_it(load: Load, folder: Path) -> None:
    load(SMALLEST)
    assert load_spec(folder).path == folder / "mlimg.yaml"
    with pytest.raises(SpecError, match=r"there is no .*nowhere"):
        load_spec(folder / "nowhere")


def test_a_spec_of_another_name_is_loaded_by_its_path(folder: Path) -> None:
    (folder / "other.yaml").write_text(SMALLEST)
    assert load_spec(Path("other.yaml")).origins["image"] == "other.yaml:1:8"


def test_all_problems_are_told_at_once_in_the_order_of_the_file(load: Load) -> None:
    text = FULL.replace("version: 3", "version: 3.10").replace("sklearn\n  version", "Sklearn\n  verzion")
    with pytest.raises(InvalidSpecError) as caught:
        load(text, "build.platfrom=linux/arm64", environment="model.nam=x")
    error = caught.value
    assert error.status == 10
    assert error.kind == "spec"
    assert error.message == "mlimg.yaml has 5 problems"
    assert [line.split(": ")[:2] for line in error.log] == [
        ["mlimg.yaml:5:10", "server.image"],
        ["mlimg.yaml:6:3", "server.verzion"],
        ["mlimg.yaml:14:12", "model.version"],
        ["MLIMG_SET", "model.nam"],
        ["--set", "build.platfrom"],
    ]


def test_a_lone_problem_is_the_message(load: Load) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load(FULL.replace("in-image", "in-mage"))
    assert caught.value.message == "mlimg.yaml:2:10: pattern: expected `in-image` or `load`, not `in-mage`"
    assert caught.value.log == ()


def test_problems_are_facts_for_programs_too(load: Load) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load(with_value("model.nmae", "digits"))
    (problem,) = caught.value.problems
    assert problem.to_json()["code"] == "E-SPEC-UNKNOWN"
    assert problem.to_json()["key"] == "model.nmae"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("servr", "server"),
        ("model.nmae", "name"),
        ("server.requirement", "requirements"),
        ("allow_pickle", "model.allow_pickle"),
    ],
)
def test_an_unknown_key_names_the_one_that_was_meant(load: Load, key: str, meant: str) -> None:
    """A2."""
    with pytest.raises(InvalidSpecError, match=f"unknown key; did you mean `{meant}`"):
        load(with_value(key, "x"))


def test_a_missing_key_is_told_where_its_section_stands(load: Load) -> None:
    with pytest.raises(InvalidSpecError, match=r"^mlimg.yaml:4:1: model.source: is missing\. "):
        load(SMALLEST.replace("  source: ./model\n", ""))


def test_a_list_or_section_in_the_wrong_place_is_named(load: Load) -> None:
    for key, value, expected in [
        ("server", "sklearn", "expected keys and values, not `sklearn`"),
        ("server.template", ["sklearn"], "expected text, not a list"),
        ("server.requirements", {"a": "b"}, "expected a list such as .*, not keys and values"),
        ("server.env", "x", "expected keys and values"),
        ("model.allow_pickle", "true", "expected true or false, not `true`"),
        ("server.options.deep", {"a": "b"}, "expected text, true, false, a number"),
    ]:
        with pytest.raises(InvalidSpecError, match=expected):
            load(with_value(key, value))


def test_a_thousand_problems_do_not_hide_the_first(load: Load) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load(with_value("server.env", {f"{n}X": "1" for n in range(1000)}))
    assert len(caught.value.log) == MAX_SHOWN + 1
    assert caught.value.log[-1] == "… and 980 more"


def test_what_is_no_spec_at_all_is_not_quoted(load: Load) -> None:
    for text in ["root:x:0:0", "12345", "[secret]", "no", ""]:
        with pytest.raises(InvalidSpecError) as caught:
            load(text)
        assert caught.value.problems[0].code in {Code.TYPE, Code.SYNTAX}
        assert "secret" not in str(caught.value)
        assert "12345" not in str(caught.value)


def test_an_unreadable_spec_is_a_local_failure(folder: Path) -> None:
    loop = folder / "mlimg.yaml"
    loop.symlink_to(loop)
    with pytest.raises(LocalIOError, match="cannot be read"):
        load_spec(loop)


def test_loading_imports_no_engine_no_templates_and_no_server(folder: Path) -> None:
    (folder / "mlimg.yaml").write_text(SMALLEST)
    code = (
        "import sys; from pathlib import Path; from mlimg.spec.load import load_spec; load_spec(Path('mlimg.yaml'));"
        "print(*(name for name in ('pydantic', 'docker', 'jinja2', 'obstore', 'starlette', 'numpy', 'urllib3', 'rich')"
        " if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pydantic"]


def test_modules_in_the_current_directory_are_not_imported(folder: Path) -> None:
    """I14, as far as loading goes: a console script starts with its own folder on the path, not the current one."""
    (folder / "mlimg.yaml").write_text(SMALLEST)
    for name in ("yaml", "pydantic", "difflib"):
        (folder / f"{name}.py").write_text("print('planted')")
    script = folder.parent / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom mlimg.spec.load import load_spec\nload_spec(Path('mlimg.yaml'))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=folder)
    assert "planted" not in done.stdout

    # The twin: with the current directory on the path the planted module is found.
    shadowed = subprocess.run(
        [sys.executable, "-c", script.read_text()], capture_output=True, text=True, check=False, cwd=folder
    )
    assert "planted" in shadowed.stdout
