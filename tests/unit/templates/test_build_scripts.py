"""The scripts that run in the build stage, against a package index of our own."""

import hashlib
import io
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from mlimg.template import templates_folder

SCRIPTS = templates_folder() / "_python" / "build"
UV = b"#!/bin/sh\necho uv\n"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name)


def wheel(version: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # A time of its own, so that the wheel is the same whenever it is written.
        archive.writestr(zipfile.ZipInfo(f"uv-{version}.data/scripts/uv", (1980, 1, 1, 0, 0, 0)), UV)
    return buffer.getvalue()


@dataclass
class Index:
    """A package index, and what it was asked."""

    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def index() -> Iterator[Index]:
    found = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.requests.append((self.path, self.headers["Authorization"]))
            if self.path in found.redirects:
                self.send_response(302)
                self.send_header("Location", found.redirects[self.path])
                self.end_headers()
                return
            media_type, body = found.pages.get(self.path, ("", b""))
            self.send_response(200 if media_type else 403)
            self.send_header("Content-Type", media_type or "text/plain")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def get_uv(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a wheel of the test's pinned."""
    module = script("get_uv", monkeypatch)
    name = f"uv-{module.VERSION}-py3-none-any.whl"
    sha256 = hashlib.sha256(wheel(module.VERSION)).hexdigest()
    monkeypatch.setattr(module, "WHEELS", {module.platform.machine(): (name, sha256)})
    return module


def serve(index: Index, module: ModuleType, *, as_json: bool = True, data: bytes | None = None) -> str:
    """Let the index list the wheel, and give its name."""
    name: str = next(iter(module.WHEELS.values()))[0]
    link = f"../../files/{name}#sha256=00"
    if as_json:
        body = json.dumps({"files": [{"filename": "x.whl", "url": "x.whl"}, {"filename": name, "url": link}]})
        index.pages["/simple/uv/"] = ("application/vnd.pypi.simple.v1+json", body.encode())
    else:
        body = f'<!DOCTYPE html><a href="x.whl">x</a><br/><A class="a" HREF=\'{link}&amp;b\'>{name}</A>'
        index.pages["/simple/uv/"] = ("text/html", body.encode())
    index.pages[f"/files/{name}"] = ("application/zip", wheel(module.VERSION) if data is None else data)
    return name


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("slash", ["", "/"])
def test_uv_comes_from_either_kind_of_index_page(
    index: Index, get_uv: ModuleType, tmp_path: Path, as_json: bool, slash: str
) -> None:
    name = serve(index, get_uv, as_json=as_json)
    get_uv.get_uv(f"{index.url}/simple{slash}", tmp_path / "cache", tmp_path / "uv")
    assert (tmp_path / "uv").read_bytes() == UV
    assert os.access(tmp_path / "uv", os.X_OK)
    assert [path for path, _login in index.requests] == ["/simple/uv/", f"/files/{name}"]


def test_the_wheel_is_kept_and_checked_again(index: Index, get_uv: ModuleType, tmp_path: Path) -> None:
    name = serve(index, get_uv)
    for _ in range(2):
        get_uv.get_uv(f"{index.url}/simple", tmp_path, tmp_path / "uv")
    assert len(index.requests) == 2
    (tmp_path / name).write_bytes(b"changed in the cache")
    get_uv.get_uv(f"{index.url}/simple", tmp_path, tmp_path / "uv")
    assert len(index.requests) == 4
    assert (tmp_path / "uv").read_bytes() == UV


def test_two_builds_with_one_process_id_may_fetch_at_once(
    index: Index, get_uv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a build's container most processes have the same id as in any other's."""
    name = serve(index, get_uv)
    partials: list[Path] = []
    replace = Path.replace

    def overtaken(partial: Path, target: Path) -> Path:
        partials.append(partial)
        if len(partials) == 1:
            get_uv.get_uv(f"{index.url}/simple", target.parent, tmp_path / "other")
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", overtaken)
    get_uv.get_uv(f"{index.url}/simple", tmp_path / "cache", tmp_path / "uv")
    assert len(set(partials)) == 2
    assert (tmp_path / "uv").read_bytes() == (tmp_path / "other").read_bytes() == UV
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]


def test_a_wheel_of_another_content_is_refused(index: Index, get_uv: ModuleType, tmp_path: Path) -> None:
    serve(index, get_uv, data=wheel(get_uv.VERSION)[:-1] + b"\x01")
    with pytest.raises(SystemExit, match="has sha256"):
        get_uv.get_uv(f"{index.url}/simple", tmp_path, tmp_path / "uv")
    assert not list(tmp_path.iterdir())


def test_an_index_without_that_uv_is_named(index: Index, get_uv: ModuleType, tmp_path: Path) -> None:
    index.pages["/simple/uv/"] = ("text/html", b"<a href='uv-0.0.1.tar.gz'>uv</a>")
    with pytest.raises(SystemExit, match=f"{index.url}/simple/uv/ does not list uv-"):
        get_uv.get_uv(f"{index.url}/simple", tmp_path, tmp_path / "uv")


def test_a_refusal_and_silence_are_told_with_what_helps(index: Index, get_uv: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"answers 403 Forbidden\nthe secret `netrc`"):
        get_uv.get_uv(f"{index.url}/simple", tmp_path, tmp_path / "uv")
    with pytest.raises(SystemExit, match="cannot be fetched: "):
        get_uv.get_uv("http://127.0.0.1:1/simple", tmp_path, tmp_path / "uv")


def test_a_password_goes_to_its_host_and_follows_no_redirect(
    index: Index, get_uv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = serve(index, get_uv)
    index.redirects["/other/uv/"] = "/simple/uv/"
    index.redirects[f"/files/{name}"] = index.url.replace("127.0.0.1", "localhost") + "/elsewhere"
    index.pages["/elsewhere"] = index.pages.pop(f"/files/{name}")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password canary\n")
    monkeypatch.setenv("NETRC", str(netrc))
    get_uv.get_uv(f"{index.url}/other", tmp_path / "cache", tmp_path / "uv")
    login = "Basic bWU6Y2FuYXJ5"
    assert index.requests == [
        ("/other/uv/", login),
        ("/simple/uv/", None),
        (f"/files/{name}", login),
        ("/elsewhere", None),
    ]


def test_another_machine_is_told(get_uv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_uv.platform, "machine", lambda: "vax")
    with pytest.raises(SystemExit, match="not for vax"):
        get_uv.get_uv("http://127.0.0.1:1", tmp_path, tmp_path / "uv")


def test_the_pinned_wheels_are_those_of_the_pinned_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("get_uv", monkeypatch)
    assert set(module.WHEELS) == {"x86_64", "aarch64"}
    for machine, (name, sha256) in module.WHEELS.items():
        assert name.startswith(f"uv-{module.VERSION}-py3-none-")
        assert machine in name
        assert "musllinux" in name, "not statically linked"
        assert len(bytes.fromhex(sha256)) == 32


def test_a_staged_tree_is_the_same_whenever_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = script("stage", monkeypatch)
    monkeypatch.setattr(stage.os, "chown", lambda *_args, **_kwargs: None)
    trees = []
    for name, umask in (("a", 0o000), ("b", 0o077)):
        tree = tmp_path / name
        before = os.umask(umask)
        try:
            (tree / "opt" / "__pycache__").mkdir(parents=True)
            (tree / "opt" / "__pycache__" / "old.cpython-313.pyc").write_bytes(b"stale")
            (tree / "opt" / "module.py").write_text("NAMES = {'a', 'b'}\n")
            (tree / "opt" / "tests").mkdir()
            (tree / "opt" / "tests" / "test_module.py").write_text("not compiled, not even Python")
            (tree / "opt" / "tool").write_text("")
            (tree / "opt" / "tool").chmod(0o700)
            (tree / "opt" / "link").symlink_to("tool")
        finally:
            os.umask(before)
        assert stage.compile_sources(tree)
        stage.normalise(tree)
        trees.append(
            [
                (str(path.relative_to(tree)), oct(path.lstat().st_mode), path.lstat().st_mtime)
                for path in sorted([tree, *tree.rglob("*")])
            ]
        )
        (compiled,) = (tree / "opt" / "__pycache__").iterdir()
        assert b"/opt/module.py" in compiled.read_bytes()
        assert str(tree).encode() not in compiled.read_bytes()
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0", "bytecode that no time invalidates"
    assert trees[0] == trees[1]
    assert {time for *_, time in trees[0]} == {0}


def test_code_that_does_not_compile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = script("stage", monkeypatch)
    (tmp_path / "handler.py").write_text("def load(:\n")
    assert not stage.compile_sources(tmp_path)


INSTALLED = {
    "lib/__init__.py": "",
    "lib/core.pyx": "",
    "lib/tests/test_core.py": "import lib.shared.tests.data",
    "lib/tests/data.csv": "1",
    "lib/include/lib.h": "",
    "lib/named/tests/test_named.py": "",
    "lib/plugins.py": "load('lib.named.tests.test_named')",
    "lib/prose.py": "# from the same paper, with many tests",
    "lib/relative/__init__.py": "def check():\n    from . import (\n        core,  # noqa\n        tests,\n    )",
    "lib/relative/core.py": "",
    "lib/relative/tests/test_relative.py": "from ...shared.tests import data",
    "lib/shared/tests/data.py": "",
    "lib/shared/tests/test_shared.py": "",
    "lib/tests_of_users/test_core.py": "",
    "dotted/__init__.py": "import_module('.tests', __package__)",
    "dotted/tests/test_dotted.py": "",
    "dotted/other/tests/test_other.py": "",
    "divided/a.py": "data = files('divided') / 'tests' / 'data.csv'",
    "divided/tests/test_divided.py": "",
    "joined/a.py": "data = files('joined').joinpath('tests/data.csv')",
    "joined/tests/test_joined.py": "",
    "callers/a.py": "own = os.path.join(folder, 'tests')",
    "callers/conftest.py": "import pytest\nown = Path(__file__).parent / 'tests'",
    "callers/tests/test_callers.py": "",
    "numba_cuda/numba/cuda/include/12/cuda_fp16.h": "",
    "cuda/cccl/headers/include/cub.h": "",
    "other/include/plugin.h": "",
    "other/include/plugin.py": "",
    "nvidia/runtime/include/fp16.h": "",
    "mine/tests/columns.json": "{}",
    "tests/test_top.py": "",
    "torch/bin/TCPStoreTest": "",
    "torch/bin/protoc-3": "",
    "torch/bin/torch_shm_manager": "",
    "torch/test/basic": "",
}
OTHERS = {"dotted/other/tests/test_other.py", "callers/tests/test_callers.py"}
TESTS = {"lib/tests/test_core.py", "lib/tests/data.csv"} | OTHERS
PROGRAMS = {"torch/bin/TCPStoreTest", "torch/bin/protoc-3", "torch/test/basic"}
SOURCES = {"lib/core.pyx", "lib/include/lib.h"}


@pytest.mark.parametrize(
    ("compiler", "whole", "removed"),
    [
        (False, "", TESTS | PROGRAMS | SOURCES),
        (True, "", TESTS | PROGRAMS),
        (False, "other lib", PROGRAMS | OTHERS),
        (False, "torch", TESTS | SOURCES),
    ],
)
def test_what_no_server_runs_is_left_out_of_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: bool, whole: str, removed: set[str]
) -> None:
    packages, programs = tmp_path / "packages", tmp_path / "programs"
    for name, text in INSTALLED.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    programs.mkdir()
    if compiler:
        (programs / "g++").touch(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("KEEP_WHOLE", whole)
    script("trim", monkeypatch).trim(packages)
    left = {path.relative_to(packages).as_posix() for path in packages.rglob("*") if path.is_file()}
    assert INSTALLED.keys() - left == removed
