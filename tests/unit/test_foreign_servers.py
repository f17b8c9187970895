"""What servers that are not ours need: files rendered from options, and images without our runtime."""

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from random import Random

import pytest

from mlimg.confined import write_confined
from mlimg.dockerfile import FILTERS, write_file
from mlimg.material import check
from mlimg.record import Part, Release
from mlimg.render import render
from mlimg.run import Wishes, place_model, run_options
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import SpecError, TemplateError, UsageError
from mlimg.spec.load import load_spec
from mlimg.spec.pattern import Pattern
from mlimg.template import Template, find_template
from mlimg.template_yaml import read_manifest
from tests.support.plans import base_image, server_plan, write_template

HEAD = 'name: mine\nversion: "1"\ndescription: a test\nbase: lab/server:1\n'
ALIEN = "fetches: false\ncommand: [--port=9000]\nhealth: {port: 9000, ready: /ok}\n"
DOCKERFILE = 'FROM {{ base | image }}\nCOPY image/ /\nENTRYPOINT ["server"]\nCMD {{ command | exec_form }}\n'


def find(folder: Path) -> Template:
    return find_template("./mine", lambda _written: folder)


def rendering(folder: Path, text: str) -> Template:
    manifest = 'rendered: [settings.json]\noptions: {name: {default: ""}, rows: {type: integer, default: 1}}\n'
    write_template(folder, manifest=manifest)
    (folder / "settings.json.j2").write_text(text)
    return find(folder)


def alien(folder: Path) -> Template:
    return find(write_template(folder, manifest=ALIEN, Dockerfile=DOCKERFILE))


def written(template: Template, **options: object) -> str:
    files = render(server_plan(template, options=options), base_image()).files
    return next(file.data.decode() for file in files if file.path == PurePosixPath("image/opt/mlimg/settings.json"))


def test_a_file_is_rendered_from_the_options(tmp_path: Path) -> None:
    template = rendering(tmp_path / "mine", '{"name": {{ options.name | json }}, "rows": {{ options.rows | json }}}')
    assert json.loads(written(template, name="a", rows="7")) == {"name": "a", "rows": 7}
    one, other = (
        render(server_plan(template, options={"name": name}), base_image()).key.text for name in ("a", "b")
    )  # fmt: skip
    assert one != other


def test_no_value_breaks_out_of_its_place_in_a_file(tmp_path: Path) -> None:
    template = rendering(tmp_path / "mine", '{"name": {{ options.name | json }}, "rows": {{ options.rows | json }}}')
    seeded = Random(7)
    sources, pieces = template.sources, ['"', "\\", "}", "{{ 1 }}", "#", "é", "\u2028", " ", ",", '"rows": 2', "'", "$"]
    for _ in range(500):
        name = "".join(seeded.choice(pieces) for _ in range(seeded.randint(1, 6)))
        text = write_file("settings.json.j2", sources, {"options": {"name": name, "rows": 1}})
        assert json.loads(text) == {"name": name, "rows": 1}


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x85", "\ud800", {"a\n": 1}, [b"bytes"]])
def test_what_is_no_line_is_in_no_file(name: object) -> None:
    with pytest.raises(TemplateError, match=r"a\.j2:1: "):
        write_file("a.j2", {"a.j2": "{{ name | json }}"}, {"name": name})


def test_what_is_quoted_for_a_dockerfile_is_not_for_a_file() -> None:
    for name in FILTERS.keys() - {"word"}:
        with pytest.raises(TemplateError, match="No filter named"):
            write_file("a.j2", {"a.j2": "{{ name | " + name + " }}"}, {"name": "x"})
    with pytest.raises(TemplateError, match="placed without a filter that quotes it: one of json, word"):
        write_file("a.j2", {"a.j2": "{{ name }}"}, {"name": "x"})


def test_a_confined_file_renders_as_any_other() -> None:
    sources, values = {"a.j2": "{{ name | json }}\n"}, {"name": ["ü", 1, None]}
    assert write_confined("a.j2", sources, values, of_dockerfile=False) == write_file("a.j2", sources, values)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("gone.cfg", r"there is no gone\.cfg\.j2"), ("handler.py", "something else already"), ("code", "something else")],
)
def test_a_rendered_file_is_one_that_there_is(tmp_path: Path, name: str, problem: str) -> None:
    folder = write_template(tmp_path / "mine", manifest=f"rendered: [{name}]\n")
    if name != "gone.cfg":
        (folder / f"{name}.j2").touch()
    with pytest.raises(TemplateError, match=problem):
        find(folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fetches: false\n", "command: expected the arguments of the server"),
        ("fetches: false\ncommand: [exec, --, x]\n", "template.yaml:6:10: command: expected"),
        ("fetches: false\ncommand: [x]\nrequirements: [numpy]\n", "requirements: without `fetches` no packages"),
        (
            "fetches: false\ncommand: [x]\nmodel_requirements: {file: a.txt}\n",
            "template.yaml:7:21: model_requirements: ",
        ),
        (
            "fetches: false\ncommand: [x]\noptions: {d: {choices: [a], default: a}}\n"
            "variants: {d: {a: {requirements: [numpy]}}}\n",
            "template.yaml:8:34: variants.d.a.requirements: without `fetches` no packages",
        ),
        ("rendered: [../x]\n", r"rendered\[0\]"),
        ("rendered: [a/b]\n", r"rendered\[0\]"),
    ],
)
def test_a_bad_manifest_is_told(text: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        read_manifest((HEAD + text).encode(), "template.yaml")


def test_a_server_that_is_not_pythons_needs_a_dockerfile(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"there is no Dockerfile\.j2"):
        find(write_template(tmp_path / "mine", manifest=ALIEN))


def test_a_server_that_fetches_nothing_has_no_runtime(tmp_path: Path) -> None:
    template = alien(tmp_path / "mine")
    context = render(server_plan(template), base_image())
    assert [str(file.path) for file in context.files] == ["image/opt/mlimg/handler.py"]
    assert context.expected.cmd == ("--port=9000",)
    assert "io.mlimg.server.key" in context.dockerfile


def test_its_packages_are_refused_and_the_load_pattern_is_told(tmp_path: Path) -> None:
    alien(tmp_path / "mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    spec = 'image: a.test/b\nserver: {template: ./mine}\nmodel: {version: "1", source: ./model}\n'
    (tmp_path / "mlimg.yaml").write_text(spec)
    material = check(load_spec(tmp_path)).material
    assert "mount the model's folder at /models" in material.unreachable(Pattern.LOAD)
    assert not material.unreachable(Pattern.IN_IMAGE)
    assert not replace(material, template=find_template("sklearn", Path)).unreachable(Pattern.LOAD)
    (tmp_path / "mlimg.yaml").write_text(spec.replace("./mine}", "./mine, requirements: [numpy]}"))
    with pytest.raises(SpecError, match="installs no packages"):
        check(load_spec(tmp_path))


def test_its_model_is_mounted_where_it_belongs_or_the_run_is_refused(tmp_path: Path) -> None:
    digest = Digest.of(b"").text
    part = Part("x:1", digest, digest, 1, published=False, how="built")
    release = Release("load", "x", part, part, "1", "1", digest, digest, port=9000, fetches=False)
    local = replace(release, model=replace(part, pinned=f"file://{tmp_path}@{digest}"))
    placement = place_model(local, linux=True)
    assert (dict(placement.mounts), dict(placement.env)) == ({PurePosixPath("/models"): tmp_path}, {})
    assert run_options(local, placement, Wishes(port=1, env={"PORT": "7"}), tmp_path).ports == {9000: 1}
    remote = replace(release, model=replace(part, pinned=f"oci://a.test/models/x:1@{digest}"))
    with pytest.raises(UsageError, match="cannot fetch its model"):
        place_model(remote, linux=True)
