"""Finding and reading templates: A13 and A15 of the fault matrix."""

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

import mlimg
from mlimg.runtime.errors import LimitError, SpecError, TemplateError
from mlimg.template import DOCKERFILE, IMAGE_HOME, Template, builtin_templates, find_template, templates_folder
from tests.support.plans import HANDLER, code, write_template


def find(folder: Path) -> Template:
    return find_template("./written", lambda _written: folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_template(tmp_path / "mine")


@pytest.mark.parametrize("name", ["sklearn", "python", "xgboost"])
def test_a_builtin_template_is_found_by_its_name(name: str) -> None:
    template = find_template(name, Path)
    assert template.builtin
    assert template.identity == f"{name}@{template.version}"
    assert template.name == template.folder.name == name


def test_every_builtin_template_is_listed() -> None:
    folders = {path.parent.name for path in templates_folder().glob("*/template.yaml")}
    assert {template.name for template in builtin_templates()} == folders >= {"python", "sklearn", "xgboost"}


def test_an_unknown_template_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(TemplateError, match="unknown template `sklern`; did you mean `sklearn`") as caught:
        find_template("sklern", Path)
    assert caught.value.status == 11


def test_a_template_of_ones_own_is_known_by_its_files(folder: Path) -> None:
    template = find(folder)
    assert not template.builtin
    assert template.identity == str(template.digest)
    assert template.needs_handler
    assert template == find(folder)
    (folder / "handler.py").write_bytes(HANDLER + b"# changed\n")
    assert find(folder).identity != template.identity


def test_what_does_not_reach_an_image_is_no_part_of_a_template(folder: Path) -> None:
    before = find(folder)
    (folder / "README.md").write_text("how to use it")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[core]")
    (folder / ".env").write_text("TOKEN=canary")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "handler.pyc").write_bytes(b"")
    after = find(folder)
    assert (after.identity, after.files) == (before.identity, before.files)


def test_a_template_is_read_once(folder: Path) -> None:
    """A16: the folder may change while the build runs."""
    template = find(folder)
    (folder / "handler.py").write_text("changed")
    (folder / DOCKERFILE).write_text("FROM changed")
    file = next(file for file in template.files if file.path == IMAGE_HOME / "handler.py")
    assert file.data == HANDLER
    assert "changed" not in template.sources[DOCKERFILE]


def test_every_context_holds_the_runtime_and_the_build_scripts(folder: Path) -> None:
    names = {str(file.path) for file in find(folder).files}
    package = Path(mlimg.__file__).parent
    runtime = {
        f"{IMAGE_HOME}/mlimg/{path.relative_to(package).as_posix()}" for path in (package / "runtime").rglob("*.py")
    }
    assert runtime | {f"{IMAGE_HOME}/mlimg/__init__.py", f"{IMAGE_HOME}/handler.py", "build/install.py"} <= names
    assert not [name for name in names if name.endswith(".pyc") or "template" in name]


@pytest.mark.parametrize("name", ["handler.py", "template.yaml", DOCKERFILE, "helper.py"])
def test_a_link_in_a_template_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """A15: a link leads out of what was reviewed."""
    outside = tmp_path / "outside"
    outside.write_text("canary")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(TemplateError, match="link") as caught:
        find(folder)
    assert caught.value.status == 11
    (folder / name).unlink()
    (folder / name).write_text((folder / name).name if name.endswith("j2") else "")
    if name != "template.yaml":
        find(folder)


def test_a_linked_folder_and_a_device_in_a_template_are_refused(folder: Path, tmp_path: Path) -> None:
    """A15."""
    (tmp_path / "outside").mkdir()
    (folder / "files").symlink_to(tmp_path / "outside")
    with pytest.raises(TemplateError, match="link"):
        find(folder)
    (folder / "files").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(TemplateError, match="not a regular file"):
        find(folder)


@pytest.mark.parametrize("name", ["mlimg", "code", "server.json"])
def test_a_template_cannot_replace_what_is_not_its_own(folder: Path, name: str) -> None:
    (folder / name).write_text("")
    with pytest.raises(TemplateError, match=f"`{name}` is the name of something else"):
        find(folder)


def test_a_folder_without_a_manifest_and_no_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TemplateError, match=r"there is no template\.yaml"):
        find(tmp_path / "empty")
    with pytest.raises(TemplateError, match="there is no folder"):
        find(tmp_path / "absent")


def test_a_template_of_too_many_files_is_refused(folder: Path) -> None:
    for number in range(1000):
        (folder / f"file{number}").touch()
    with pytest.raises(LimitError, match="at most 1000 files"):
        find(folder)


def test_options_are_typed_and_filled_in(tmp_path: Path) -> None:
    manifest = (
        "options:\n"
        "  method: {choices: [predict, score], default: predict}\n"
        "  rows: {type: integer, default: 10}\n"
        "  limit: {type: number, required: false}\n"
        "  strict: {type: boolean, default: false}\n"
        "  key: {description: needed}\n"
    )
    template = find(write_template(tmp_path / "mine", manifest=manifest))
    ours = {"grpc": False, "max_batch_delay_ms": 0, "max_batch_size": 1, "workers": "threads"}
    assert template.check_options({"key": "a"}) == {
        **ours,
        "method": "predict",
        "rows": 10,
        "limit": None,
        "strict": False,
        "key": "a",
    }
    given = {"key": "a", "method": "score", "rows": "12", "limit": "1.5", "strict": "true"}
    typed = {"key": "a", "method": "score", "rows": 12, "limit": 1.5, "strict": True}
    assert template.check_options(given) == {**ours, **typed}


def test_options_of_every_server_are_the_servers_of_ours_alone(tmp_path: Path) -> None:
    ours = find(write_template(tmp_path / "ours"))
    assert ours.check_options({"workers": "processes", "grpc": "true"})["workers"] == "processes"
    packages = [ours.chosen(ours.check_options({"grpc": grpc})).requirements for grpc in ("true", "false")]
    assert [any("grpcio" in name for name in names) for names in packages] == [True, False]
    theirs = find(write_template(tmp_path / "theirs", manifest='command: [exec, "--", server]\n'))
    with pytest.raises(SpecError, match="has no such option"):
        theirs.check_options({"workers": "processes"})


def test_a_template_may_choose_another_default_of_an_option_that_every_server_has(tmp_path: Path) -> None:
    manifest = "options: {workers: {choices: [threads, processes], default: processes}}\n"
    template = find(write_template(tmp_path / "mine", manifest=manifest))
    assert template.check_options({})["workers"] == "processes"


def test_all_problems_with_options_are_told_at_once(tmp_path: Path) -> None:
    manifest = "options:\n  method: {choices: [predict, score], default: predict}\n  rows: {type: integer}\n"
    template = find(write_template(tmp_path / "mine", manifest=manifest))
    with pytest.raises(SpecError) as caught:
        template.check_options({"methd": "score", "method": "scores"})
    assert caught.value.status == 10
    assert caught.value.message.splitlines() == [
        "server.options.methd: template `mine` has no such option; did you mean `method`?",
        "server.options.method: `scores` is not one of `predict`, `score`",
        "server.options.rows: template `mine` needs it: a whole number",
    ]


def test_a_choice_brings_its_base_and_packages(tmp_path: Path) -> None:
    write_template(
        tmp_path / "mine",
        manifest="requirements: [torch]\n"
        "options: {device: {choices: [cpu, cuda], default: cpu}}\n"
        "variants:\n"
        "  device:\n"
        "    cpu: {indexes: {Torch: https://mirror.test/cpu}}\n"
        "    cuda: {base: lab/cuda:13, requirements: [nvidia-ml-py], formats: [onnx]}\n"
        "formats: [torchscript]\n",
    )
    template = find(tmp_path / "mine")
    cpu, cuda = (template.chosen(template.check_options({"device": device})) for device in ("cpu", "cuda"))
    assert (cpu.base, cpu.requirements, cpu.indexes) == (
        "python:3.13-slim", ("torch",), {"torch": "https://mirror.test/cpu"},
    )  # fmt: skip
    assert (cuda.base, cuda.requirements, cuda.indexes) == ("lab/cuda:13", ("torch", "nvidia-ml-py"), {})
    assert (cpu.formats, cuda.formats) == (("torchscript",), ("onnx",))
    assert cpu.identity == cuda.identity == template.identity


def test_a_server_of_ours_needs_a_handler_from_somewhere() -> None:
    template = find_template("python", Path)
    with pytest.raises(SpecError, match=r"template `python` needs a handler\.py"):
        template.check_code(code(other=b""))
    template.check_code(code(handler=HANDLER))
    replace(template, command=("exec", "--", "other")).check_code(())


def test_templates_are_found_beside_the_package_in_a_checkout() -> None:
    assert templates_folder() == Path(mlimg.__file__).parent.parent / "templates"


def test_the_digest_counts_modes(folder: Path) -> None:
    before = find(folder).identity
    (folder / "handler.py").chmod(0o755)
    executable = find(folder)
    assert executable.identity != before
    (folder / "handler.py").chmod(0o777)
    assert find(folder).identity == executable.identity
    assert {file.mode for file in executable.files if file.path == PurePosixPath(IMAGE_HOME, "handler.py")} == {0o755}
