"""Server images from the built-in templates, really built on both image stores, judged by what the engine has.

A9, C1, C2 and the figures of the fault matrix and the issue that need an engine.
"""

import io
import json
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mlimg.engine import buildx
from mlimg.engine.base import resolve_base
from mlimg.engine.docker import Engine, EngineImage
from mlimg.plan import BaseImage, ServerPlan
from mlimg.render import Context, render, render_with_model
from mlimg.runtime.errors import EngineError
from tests.support.engines import Engine as Host
from tests.support.plans import HANDLER, code, server_plan

CANARY = "canary-5d1e09b7f4"
SYSTEM_CAS = Path("/etc/ssl/certs/ca-certificates.crt")
# Runs inside the image: files under the folders that mlimg fills, as ``[path, mode, uid, gid, time, size]``.
LIST = (
    "import json, os\n"
    "paths = [os.path.join(top, name) for root in ('/opt', '/models', '/cache')"
    " for top, folders, names in os.walk(root) for name in folders + names] + ['/opt', '/models', '/cache']\n"
    "stats = [(path, os.lstat(path)) for path in sorted(paths)]\n"
    "facts = [(p, oct(s.st_mode & 0o7777), s.st_uid, s.st_gid, int(s.st_mtime), s.st_size) for p, s in stats]\n"
    "print(json.dumps(facts))"
)


class Silent:
    """A step that nobody watches."""

    def advance(self, size_bytes: int) -> None: ...
    def update(self, text: str) -> None: ...


@dataclass(frozen=True)
class Builder:
    """Builds plans in one engine, on the base image."""

    host: Host
    engine: Engine
    base: BaseImage
    tag: str

    def build(self, plan: ServerPlan, *, no_cache: bool = False, **secrets: Path) -> EngineImage:
        return self.build_context(render(plan, self.base), no_cache=no_cache, **secrets)

    def build_context(self, context: Context, *, no_cache: bool = False, **secrets: Path) -> EngineImage:
        return buildx.build(
            self.engine,
            context,
            platform=self.engine.platform,
            base=self.base,
            secrets=secrets,
            ca_bundle=SYSTEM_CAS if SYSTEM_CAS.exists() else None,
            tags=[self.tag],
            report=Silent(),
            timeout_seconds=600,
            no_cache=no_cache,
        )

    def python(self, program: str, *arguments: str, image: str = "") -> str:
        """Run a program with the image's own Python."""
        container = ["run", "--rm", *arguments, "--entrypoint", "/opt/venv/bin/python", image or self.tag]
        return self.host.docker(*container, "-c", program)

    def files(self, image: str = "") -> list[list[Any]]:
        found: list[list[Any]] = json.loads(self.python(LIST, image=image))
        return found

    def config(self, image: str = "") -> dict[str, Any]:
        config: dict[str, Any] = json.loads(
            self.host.docker("image", "inspect", "--format", "{{json .Config}}", image or self.tag)
        )
        return config

    def save(self) -> bytes:
        """The image as an archive, layers plain."""
        saved = subprocess.run(["docker", "save", self.tag], check=True, capture_output=True, env=self.host.env).stdout
        with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
            blobs = [file.read() for entry in archive if (file := archive.extractfile(entry))]
        return b"".join(_plain(blob) for blob in blobs)


def _plain(blob: bytes) -> bytes:
    if not blob.startswith(b"\x1f\x8b"):
        return blob
    return subprocess.run(["gzip", "-dc"], input=blob, check=True, capture_output=True).stdout


@pytest.fixture
def make_builder(tmp_path: Path, base_image: str) -> Iterator[Callable[[Host], Builder]]:
    builders: list[Builder] = []

    def make(host: Host) -> Builder:
        engine = Engine.connect(host.env | {"XDG_CACHE_HOME": str(tmp_path)})
        base = resolve_base(engine, base_image, engine.platform)
        builders.append(Builder(host, engine, base, f"mlimg.local/test-{uuid.uuid4().hex[:8]}:1"))
        return builders[-1]

    yield make
    for builder in builders:
        if builder.host.docker("image", "ls", "--quiet", builder.tag):
            builder.host.docker("image", "rm", "--force", builder.tag)


@pytest.fixture
def builder(engine: Host, make_builder: Callable[[Host], Builder]) -> Builder:
    return make_builder(engine)


@pytest.fixture
def graph(graph_engine: str, make_builder: Callable[[Host], Builder]) -> Builder:
    """For what does not depend on the image store."""
    return make_builder(Host(graph_engine, "graph"))


def test_two_builds_without_cache_give_equal_layers(builder: Builder) -> None:
    plan = server_plan(
        "python", requirements=("httptools==0.7.1",), code=code(handler=HANDLER, features=b"X = {1, 2}\n")
    )
    first = builder.build(plan, no_cache=True)
    second = builder.build(plan, no_cache=True)
    assert first.image.diff_ids == second.image.diff_ids
    assert first.image.identity == second.image.identity
    added = len(first.image.diff_ids) - len(builder.base.diff_ids)
    assert added == 2, "packages and code, nothing else"


def test_both_image_stores_give_the_same_server(
    graph: Builder, containerd_engine: str, make_builder: Callable[[Host], Builder]
) -> None:
    plan = server_plan("python")
    elsewhere = make_builder(Host(containerd_engine, "containerd"))
    assert render(plan, graph.base).key == render(plan, elsewhere.base).key
    assert graph.build(plan).image.identity == elsewhere.build(plan).image.identity


def test_changed_code_leaves_the_packages_layer(graph: Builder) -> None:
    first = graph.build(server_plan("python"))
    second = graph.build(server_plan("python", code=code(handler=HANDLER + b"# changed\n")))
    assert first.image.diff_ids[:-1] == second.image.diff_ids[:-1]
    assert first.image.diff_ids[-1] != second.image.diff_ids[-1]


def test_the_sklearn_server_is_slim_and_owned_as_promised(graph: Builder) -> None:
    graph.build(server_plan("sklearn"))
    size = {name: _size(graph.host, name) for name in (graph.tag, graph.base.written)}
    files = graph.files()
    packages = "/opt/venv/lib/"
    wheels = sum(size for path, *_, size in files if path.startswith(packages) and not path.endswith(".pyc"))
    bytecode = sum(size for path, *_, size in files if path.endswith(".pyc"))
    assert size[graph.tag] - size[graph.base.written] - wheels - bytecode <= 20 * 2**20
    modes = {path: (mode, uid, gid) for path, mode, uid, gid, *_ in files}
    assert modes["/models"] == modes["/cache"] == ("0o2775", 10001, 0)
    rest = {value for path, value in modes.items() if path not in {"/models", "/cache"}}
    assert rest <= {("0o755", 0, 0), ("0o644", 0, 0), ("0o777", 0, 0)}  # the last are links
    assert {time for *_, time, _size in files} == {0}
    assert {f"{path}/__pycache__" for path in ("/opt/mlimg", "/opt/mlimg/mlimg/runtime")} <= modes.keys()


def test_the_image_holds_no_installer_and_runs_under_any_user_of_group_0(graph: Builder) -> None:
    graph.build(server_plan("python"))
    look = (
        "import os, shutil, importlib.util as u\n"
        "tools = [t for t in ('pip', 'pip3', 'uv', 'cc', 'gcc') if shutil.which(t)]\n"
        "modules = [m for m in ('pip', 'uv', 'setuptools') if u.find_spec(m)]\n"
        "folders = ('/build', '/layers', '/var/cache/mlimg', '/root/.cache', '/run/secrets')\n"
        "left = [p for p in folders if os.path.exists(p)]\n"
        "lists = [n for n in os.listdir('/var/lib/apt/lists') if 'Packages' in n]\n"
        "print(tools, modules, left, lists)"
    )
    assert graph.python(look) == "[] [] [] []"
    imports = "import mlimg.runtime.errors, numpy, starlette, tempfile, os; open('/cache/x', 'w'); print(os.getuid())"
    hardened = ("--read-only", "--cap-drop", "ALL", "--network", "none")
    assert graph.python(imports, "--user", "31337:0", *hardened, "--tmpfs", "/cache:mode=2775,uid=10001") == "31337"
    assert graph.python("import mlimg.runtime.errors; print('fine')", *hardened) == "fine"


def test_values_come_out_of_the_engine_as_they_went_in(builder: Builder) -> None:
    """A9: what the schema and the filters let pass is in the image byte by byte, and nothing else is."""
    pieces = [
        "$HOME",
        "${PATH:-x}",
        "\\",
        "\\\\",
        '"',
        "'",
        "`id`",
        "$(id)",
        "<<EOF",
        "#",
        "# escape=`",
        "é",
        "☃",
        "\t",
    ]
    pieces += ["--x", " ", "a=b", "\u2028", "\u202e", "\N{GRINNING FACE}", "%s", "{{ 1 }}", "\\n", "[]", "&&", ";", ""]
    values = [f"{a}{b}{c}" for a in ("", "x") for b in pieces for c in pieces]
    env = {f"V{number}": value for number, value in enumerate(values)}
    plain = builder.build(server_plan("python"))
    history = len(builder.host.docker("history", "--quiet", builder.tag).split())
    hostile = builder.build(server_plan("python", env=env))
    config = builder.config()
    found = dict(entry.split("=", 1) for entry in config["Env"])
    assert {name: found[name] for name in env} == env
    before = dict(entry.split("=", 1) for entry in plain.image.settings["Env"])
    assert found.keys() - env.keys() == before.keys()
    assert (config["User"], config["Cmd"]) == ("10001:0", ["serve"])
    assert hostile.image.diff_ids == plain.image.diff_ids
    # One ENV more than the plain server, which has none of the user's.
    assert len(builder.host.docker("history", "--quiet", builder.tag).split()) == history + 1


def test_a_secret_is_used_and_leaves_no_trace(graph: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C2, and C1 for files that lie about."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine index.test login somebody password {CANARY}\n")
    (tmp_path / ".env").write_text(f"TOKEN={CANARY}")
    plan = server_plan("python", secrets=("netrc",), code=code(handler=HANDLER + b"# not a secret 31c7\n"))
    monkeypatch.chdir(tmp_path)
    graph.build(plan, no_cache=True, netrc=netrc)
    saved = graph.save()
    assert b"not a secret 31c7" in saved, "the search finds what is there"
    assert CANARY.encode() not in saved
    for trace in (("history", "--no-trunc"), ("image", "inspect")):
        assert CANARY not in graph.host.docker(*trace, graph.tag)


def test_a_secret_that_is_named_and_not_given_ends_the_build(graph: Builder) -> None:
    with pytest.raises(EngineError, match="netrc"):
        graph.build(server_plan("python", secrets=("netrc",)), no_cache=True)  # a cached step asks for no secret
    assert not graph.host.docker("image", "ls", "--quiet", graph.tag)


def test_code_that_does_not_compile_ends_the_build(graph: Builder) -> None:
    with pytest.raises(EngineError) as caught:
        graph.build(server_plan("python", code=code(handler=b"def load(:\n")))
    assert any("/opt/mlimg/code/handler.py" in line for line in caught.value.log)


def test_a_rendered_folder_with_its_model_gives_what_appending_promises(builder: Builder, tmp_path: Path) -> None:
    server = builder.build(server_plan("python"))
    before = {path: entry for path, *entry in builder.files()}
    context = render(server_plan("python"), replace(builder.base, pinned=builder.base.written, build_context=None))
    _write(tmp_path, context.dockerfile, context)
    (tmp_path / "models" / "sub").mkdir(parents=True)
    for name, mode in (("weights.bin", 0o644), ("sub/tool", 0o755)):
        (tmp_path / "models" / name).write_bytes(b"12345")
        (tmp_path / "models" / name).chmod(mode)
    (tmp_path / "Dockerfile").write_text(render_with_model(context, {"io.mlimg.model.name": "digits"}))
    tag = f"{builder.tag}-model"
    secret = ["--secret", f"id=ca_bundle,src={SYSTEM_CAS}"] if SYSTEM_CAS.exists() else []
    builder.host.docker("build", "--build-arg", "SOURCE_DATE_EPOCH=0", *secret, "--tag", tag, str(tmp_path))
    try:
        after = {path: entry for path, *entry in builder.files(tag)}
        config = builder.config(tag)
    finally:
        builder.host.docker("image", "rm", "--force", tag)
    added = {path: tuple(entry[:3]) for path, entry in after.items() if path not in before}
    assert added == {
        "/models/sub": ("0o755", 0, 0),
        "/models/sub/tool": ("0o755", 0, 0),
        "/models/weights.bin": ("0o644", 0, 0),
    }
    changed = {path for path in before if before[path][:3] != after[path][:3]}
    assert not changed, "/models keeps its owner and mode"
    labels = {**server.image.labels, "io.mlimg.model.name": "digits"}
    assert config["Labels"] == labels
    settings = ("User", "Env", "Entrypoint", "Cmd", "ExposedPorts")
    assert {key: config[key] for key in settings} == {key: server.image.settings[key] for key in settings}


def _write(folder: Path, dockerfile: str, context: Context) -> None:
    (folder / "Dockerfile").write_text(dockerfile)
    for file in context.files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(file.data)
        (folder / file.path).chmod(file.mode)


def _size(host: Host, image: str) -> int:
    return int(host.docker("image", "inspect", "--format", "{{.Size}}", image))
