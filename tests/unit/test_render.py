"""From a plan to a build context: A9, A15 to A18, C1 and C3 of the fault matrix."""

import io
import itertools
import json
import random
import tarfile
import tomllib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from mlimg.dockerfile import parse_dockerfile
from mlimg.files import ContextFile
from mlimg.plan import ServerPlan
from mlimg.render import Context, render, render_with_model
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import LimitError, MlimgError, SpecError, TemplateError
from mlimg.spec.grammar import text_line
from mlimg.template import IMAGE_HOME, find_template
from tests.support.plans import HANDLER, base_image, code, server_plan, write_template

HOSTILE = (
    *("\n", "\r", "\r\n", "\0", "\v", "\f", "\t", "\x1b[31m", "\x85", "\u2028", "\u2029", "\u202e", "\ufeff", "\ud800"),
    *(
        "\\",
        "\\\\",
        "\\\n",
        "$X",
        "${X}",
        "${X:-y}",
        "$(id)",
        "`id`",
        '"',
        "'",
        "'\"'",
        "<<EOF",
        "<<-'EOF'",
        "-",
        "--x",
    ),
    *(
        "#",
        "# syntax=x",
        "// syntax=x",
        '{"syntax": "x"}',
        "# escape=`",
        "{{ 7*7 }}",
        "{% raw %}",
        "%s",
        "&&",
        ";",
        "|",
    ),
    *(
        "\nRUN id",
        "\nUSER 0",
        '"\nUSER 0\n"',
        "x AS build\nUSER 0",
        "\\\nUSER 0",
        ' B="c',
        "é",
        "\N{GRINNING FACE}",
        "",
    ),
    *("\n# syntax=x", "ONBUILD RUN id", "[]", "null", " ", "  leading", "trailing ", "a=b", "a b", ",required=false"),
)


def mine(tmp_path: Path, **files: str) -> ServerPlan:
    folder = write_template(tmp_path / "mine", **files)
    return server_plan(find_template("./mine", lambda _written: folder))


def data(context: Context, path: str) -> bytes:
    return next(file.data for file in context.files if str(file.path) == path)


def names(context: Context) -> set[str]:
    return {str(file.path) for file in context.files}


def test_equal_plans_render_to_equal_bytes() -> None:
    plan = server_plan(env={"B": "2", "A": "1"}, code=code(handler=HANDLER, other=b""))
    again = replace(plan, env={"A": "1", "B": "2"}, code=plan.code[::-1])
    first, second = render(plan, base_image()), render(again, base_image())
    assert first == second
    assert first.tar() == second.tar()
    assert list(first.files) == sorted(first.files, key=lambda file: file.path)


def test_the_key_follows_everything_that_goes_in() -> None:
    plan, base = server_plan(code=code(handler=HANDLER)), base_image()
    changed = [
        render(plan, replace(base, identity=Digest.of(b"another base"))),
        render(replace(plan, inputs=Digest.of(b"other inputs")), base),
        render(replace(plan, code=code(handler=HANDLER + b"#")), base),
        render(replace(plan, code=(replace(plan.code[0], mode=0o755),)), base),
        render(replace(plan, index="https://mirror.test/simple"), base),
        render(replace(plan, secrets=("netrc",)), base),
        render(replace(plan, requirements=("six",)), base),
        render(replace(plan, template=replace(plan.template, own_files=code(handler=HANDLER))), base),
    ]
    keys = [context.key for context in [render(plan, base), *changed]]
    assert len(set(keys)) == len(keys)


def test_the_key_does_not_follow_how_the_base_is_named_or_what_version_is_given() -> None:
    plan, base = server_plan(), base_image()
    from_engine = replace(base, pinned="mlimg-base")
    assert render(plan, base).key == render(plan, from_engine).key == render(replace(plan, version="2"), base).key
    assert "FROM mlimg-base AS base\n" in render(plan, from_engine).dockerfile


def test_only_a_server_that_fetches_from_object_stores_has_obstore() -> None:
    for fetches in (True, False):
        context = render(server_plan(fetches_objects=fetches), base_image())
        requirements = data(context, "build/requirements.txt").decode()
        assert ("obstore" in requirements) is fetches


def test_a_package_may_have_an_index_of_its_own() -> None:
    def sources(**changes: Any) -> list[dict[str, Any]]:
        files = render(server_plan("python", **changes), base_image()).files
        return [tomllib.loads(file.data.decode()) for file in files if file.path.name == "pyproject.toml"]

    assert sources() == []
    torch = 'Torch[opt]>=2; sys_platform == "linux"'
    required = ("idna", f"{torch} --hash=sha256:{'0' * 64}")
    (found,) = sources(requirements=required, indexes={"torch": "https://mirror.test/cpu"})
    assert found["project"]["dependencies"] == [torch]  # on Linux alone, as it says
    assert found["tool"]["uv"]["sources"] == {"torch": {"index": "of-torch"}}
    assert found["tool"]["uv"]["index"] == [{"name": "of-torch", "url": "https://mirror.test/cpu", "explicit": True}]
    with pytest.raises(SpecError, match=r"build\.indexes\.torch: no requirement names torch"):
        sources(indexes={"torch": "https://mirror.test/cpu"})


def test_the_context_holds_what_the_image_needs_and_no_more() -> None:
    context = render(server_plan("python", options={}, requirements=("torch==2.7",)), base_image())
    requirements = data(context, "build/requirements.txt").decode().splitlines()
    assert requirements[-2:] == ["numpy>=2.0", "torch==2.7"]
    assert {line.split(">")[0] for line in requirements} >= {"starlette", "uvicorn", "urllib3"}
    assert json.loads(data(context, f"{IMAGE_HOME}/server.json")) == {
        "template": "python",
        "templateVersion": "1",
        "frameworks": ["custom"],
        "formats": [],
        "options": {},
        "serving": {"grpc": False, "max_batch_delay_ms": 0, "max_batch_size": 1, "workers": "threads"},
    }
    tops = {path.split("/")[0] for path in names(context)}
    assert tops == {"build", "image"}
    assert {file.mode for file in context.files} <= {0o644, 0o755}


def test_the_users_handler_wins() -> None:
    templates_own, users_own = f"{IMAGE_HOME}/handler.py", f"{IMAGE_HOME}/code/handler.py"
    alone = render(server_plan("sklearn"), base_image())
    assert templates_own in names(alone)
    own = render(server_plan("sklearn", code=code(handler=HANDLER)), base_image())
    assert users_own in names(own)
    assert templates_own not in names(own)
    beside = render(server_plan("sklearn", code=code(features=b"")), base_image())
    assert templates_own in names(beside)


def test_the_tar_is_the_context() -> None:
    context = render(server_plan(code=code(handler=HANDLER)), base_image())
    with tarfile.open(fileobj=io.BytesIO(context.tar())) as archive:
        entries = archive.getmembers()
        files = {entry.name: archive.extractfile(entry) for entry in entries if entry.isfile()}
        contents = {name: file.read() for name, file in files.items() if file is not None}
    assert contents.pop("Dockerfile").decode() == context.dockerfile
    assert contents == {str(file.path): file.data for file in context.files}
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries} == {(0, 0, 0)}
    assert {entry.mode for entry in entries if entry.isdir()} == {0o755}


def test_the_expected_config_is_what_the_last_stage_sets() -> None:
    expected = render(server_plan(env={"A": "$b"}), base_image()).expected
    assert (expected.user, expected.env, expected.cmd) == ("10001:0", {"A": "$b"}, ("serve",))
    assert expected.entrypoint == ("/opt/venv/bin/python", "-m", "mlimg.runtime")
    assert expected.exposed_ports == ("8080/tcp",)
    with_grpc = render(server_plan(options={"grpc": True}), base_image()).expected
    assert with_grpc.exposed_ports == ("8080/tcp", "8081/tcp")
    assert expected.labels["io.mlimg.server.template"] == "sklearn@1"


def test_labels_come_last_and_the_model_after_the_server() -> None:
    context = render(server_plan(), base_image())
    kinds = [instruction.name for instruction in parse_dockerfile(context.dockerfile)]
    assert kinds[-1] == "LABEL"
    assert kinds.count("LABEL") == 1
    with_model = parse_dockerfile(render_with_model(context, {"io.mlimg.model.name": "digits"}))
    assert with_model[: len(kinds)] == parse_dockerfile(context.dockerfile)
    assert [(last.name, last.rest) for last in with_model[len(kinds) :]] == [
        ("COPY", "models/ /models/"),
        ("LABEL", 'io.mlimg.model.name="digits"'),
    ]


@pytest.fixture
def no_shared_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing the runtime 2500 times would prove nothing."""
    monkeypatch.setattr("mlimg.template.shared_files", tuple)


def plain_plan() -> ServerPlan:
    return server_plan(
        find_template("python", Path), env={"A": "1", "B": "2"}, secrets=("netrc",), index="https://mirror.test/simple"
    )


def hostile_plans(count: int) -> list[ServerPlan]:
    """Plans with hostile text in every field whose text can reach a Dockerfile, in every place of the text."""
    seeded = random.Random(20260101)
    texts = [f"{before}{bad}{after}" for bad in HOSTILE for before, after in itertools.product(("", "a"), ("", "b"))]
    plain, plans = plain_plan(), []
    template = plain.template
    for text in texts:
        plans += [
            replace(plain, env={"A": text, "B": "2"}),
            replace(plain, env={"A": "1", text: "2"}),
            replace(plain, env={"A": text, "B": text}),
            replace(plain, version=text),
            replace(plain, index=text),
            replace(plain, secrets=(text,)),
            replace(plain, options={"method": text}),
            replace(plain, requirements=(text,)),
            replace(plain, template=replace(template, version=text)),
            replace(plain, template=replace(template, command=(text, "serve"))),
        ]
    while len(plans) < count:
        text = "".join(seeded.choice(HOSTILE) for _ in range(seeded.randint(2, 6)))
        plans.append(replace(plain, env={"A": text, "B": text}, version=text, index=text))
    return plans


@pytest.mark.usefixtures("no_shared_files")
def test_no_value_adds_changes_or_swallows_an_instruction() -> None:
    """A9: every plan is refused in time, or renders to the very same instructions with its values in their places."""
    plain = parse_dockerfile(render(plain_plan(), base_image()).dockerfile)
    shape = [instruction.name for instruction in plain]
    plans = hostile_plans(2500)
    rendered, statuses = 0, set()
    for plan in plans:
        try:
            context = render(plan, base_image())
        except MlimgError as error:
            statuses.add(error.status)
            continue
        rendered += 1
        instructions = parse_dockerfile(context.dockerfile)
        assert [instruction.name for instruction in instructions] == shape, plan
        users = [instruction.rest for instruction in instructions if instruction.name == "USER"]
        assert users == ["0:0", "0:0", "10001:0"]
        env = [instruction.rest for instruction in instructions if instruction.name == "ENV"][-1]
        assert unquoted(env) == dict(plan.env)
        assert unquoted(instructions[-1].rest)["io.mlimg.server.version"] == plan.version
    assert statuses == {10, 11}
    assert len(plans) >= 2000
    assert rendered > len(plans) // 3, "most plans are refused: the test proves little"


@pytest.mark.usefixtures("no_shared_files")
def test_whatever_the_spec_lets_pass_can_be_rendered() -> None:
    """A9: nothing is accepted in `check` and refused in `build`."""
    accepted = 0
    for text in (f"{before}{bad}{after}" for bad in HOSTILE for before in ("", "a") for after in ("", "b")):
        try:
            text_line(text)
        except ValueError:
            continue
        accepted += 1
        instructions = parse_dockerfile(render(replace(plain_plan(), env={"A": text}), base_image()).dockerfile)
        env = [instruction.rest for instruction in instructions if instruction.name == "ENV"][-1]
        assert unquoted(env) == {"A": text}
    assert accepted > 100


def unquoted(assignments: str) -> dict[str, str]:
    """The assignments of an `ENV` or `LABEL` with values in double quotes, read as BuildKit's lexer reads them.

    https://github.com/moby/buildkit/blob/v0.13.0/frontend/dockerfile/shell/lex.go
    """
    found = {}
    rest = assignments
    while rest:
        name, _, rest = rest.partition('="')
        value, escaped = "", False
        for position, character in enumerate(rest):  # noqa: B007 (used below)
            if escaped:
                value += character if character in '"$\\' else f"\\{character}"
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                break
            else:
                assert character != "$", "an expansion"
                value += character
        found[name] = value
        rest = rest[position + 1 :].lstrip(" ")
    return found


@pytest.mark.parametrize("base", ["python:3.13\nUSER 0", "python AS x", "${X}", "python:3.13 --platform=x", ""])
def test_a_base_that_is_no_reference_is_refused(base: str) -> None:
    with pytest.raises(TemplateError):
        render(server_plan(), base_image(pinned=base))


def test_a_value_that_makes_a_line_no_engine_reads_is_refused() -> None:
    """A18, in a whole render."""
    with pytest.raises(LimitError) as caught:
        render(server_plan(env={"A": "x" * 70_000}), base_image())
    assert caught.value.status == 21
    assert "x" * 65_000 in render(server_plan(env={"A": "x" * 65_000}), base_image()).dockerfile


def test_a_template_may_extend_the_python_dockerfile(tmp_path: Path) -> None:
    dockerfile = (
        '{% extends "_python/Dockerfile.j2" %}\n'
        "{% block packages %}\nRUN apt-get install -y {{ ['libgomp1', 'a b'] | sh_list }}\n{% endblock %}\n"
    )
    text = render(mine(tmp_path, Dockerfile=dockerfile), base_image()).dockerfile
    assert "STOPSIGNAL SIGTERM\nRUN apt-get install -y libgomp1 'a b'\nCOPY --from=build" in text


def test_a_template_of_ones_own_has_a_cache_of_its_own(tmp_path: Path) -> None:
    assert "id=mlimg," in render(server_plan(), base_image()).dockerfile
    plan = mine(tmp_path)
    assert plan.template.digest is not None
    assert f"id=mlimg-{plan.template.digest.hex[:12]}," in render(plan, base_image()).dockerfile


def test_a_template_with_a_shell_as_process_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="CMD is not a JSON array"):
        render(mine(tmp_path, Dockerfile="FROM {{ base | image }}\nCMD run --this\n"), base_image())
    context = render(mine(tmp_path, Dockerfile='FROM {{ base | image }}\nCMD ["run"]\nUSER 5:0'), base_image())
    assert (context.expected.cmd, context.expected.user, context.expected.entrypoint) == (("run",), "5:0", ())
    assert "USER 5:0\nLABEL" in context.dockerfile


def test_what_only_the_builder_knows_is_not_compared(tmp_path: Path) -> None:
    dockerfile = "FROM {{ base | image }}\nARG UID=5\nUSER ${UID}\nEXPOSE 80 $UID 90-99\n"
    expected = render(mine(tmp_path, Dockerfile=dockerfile), base_image()).expected
    assert (expected.user, expected.exposed_ports) == ("", ("80/tcp",))


def test_a_directive_of_a_template_is_refused(tmp_path: Path) -> None:
    """A17, in a whole render."""
    with pytest.raises(TemplateError, match="chooses how it is read") as caught:
        render(mine(tmp_path, Dockerfile="# syntax=evil.test/frontend\nFROM {{ base | image }}\n"), base_image())
    assert caught.value.status == 11


def test_a_mistake_in_a_template_of_ones_own_leaves_nothing(tmp_path: Path) -> None:
    """A13, in a whole render."""
    with pytest.raises(TemplateError, match=r"Dockerfile\.j2:2: 'gone' is undefined"):
        render(mine(tmp_path, Dockerfile="FROM {{ base | image }}\nRUN {{ gone | sh }}\n"), base_image())


def test_secrets_around_the_project_are_no_part_of_a_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C1: the context is made of what is named, never of a folder."""
    plan = mine(tmp_path)
    for name in (".env", ".netrc", ".aws/credentials", ".git/config", "id_rsa", "mine/.env", "mine/.git/config"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("canary-7f3a")
    monkeypatch.chdir(tmp_path)
    again = mine(tmp_path)
    assert again.template.identity == plan.template.identity
    assert b"canary-7f3a" not in render(again, base_image()).tar()
    (tmp_path / "mine" / "data.txt").write_text("canary-7f3a")
    assert b"canary-7f3a" in render(mine(tmp_path), base_image()).tar(), "the search finds what is there"


def test_an_ignore_file_and_a_dockerfile_among_the_code_mean_nothing() -> None:
    """C3: both lie deep in the context, where no builder looks for them."""
    files = tuple(ContextFile(PurePosixPath(name), b"!**\n*\n") for name in (".dockerignore", "Dockerfile", "x.py"))
    context = render(server_plan(code=files), base_image())
    assert {f"{IMAGE_HOME}/code/{name}" for name in (".dockerignore", "Dockerfile", "x.py")} <= names(context)
    assert context.dockerfile.startswith("# A Python server")
    with tarfile.open(fileobj=io.BytesIO(context.tar())) as archive:
        top = [name for name in archive.getnames() if "/" not in name]
    assert sorted(top) == ["Dockerfile", "build", "image"]
