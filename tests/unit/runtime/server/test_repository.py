"""Models loaded and unloaded by request: what may be loaded, what is refused and how, and what stays as it was."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime import locate
from mlimg.runtime.cache import use
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    BusyError,
    CredentialsError,
    IntegrityError,
    LimitError,
    LocalIOError,
    MlimgError,
    RemoteError,
    RemoteTemporaryError,
)
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile, ModelManifest, model_path
from mlimg.runtime.prepare import prepare_located
from mlimg.runtime.server import start as start_module
from mlimg.runtime.server.app import make_app
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.protocols.table import PROTOCOLS
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.server.start import start
from mlimg.runtime.server.state import State
from tests.unit.runtime.server.conftest import Answer, Server

LOAD = "/v2/repository/models/digits/load"
UNLOAD = "/v2/repository/models/digits/unload"
HANDLER = """
import pathlib
def load(model_dir, options):
    with open("{loads}", "a") as log: log.write("x")
    return float((model_dir / "number").read_text())
def predict(model, inputs): return {{"y": inputs["x"] * 0 + model}}
"""
ASKED = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [0]}]}

MakeRepository = Callable[..., Server]


def publish(folder: Path, number: str, name: str = "digits") -> str:
    """A model in a folder whose name is its version; its URI."""
    folder.mkdir(parents=True)
    (folder / "number").write_text(number)
    file = ModelFile(model_path("number"), len(number), Digest.of(number.encode()))
    manifest = ModelManifest(name, folder.name, "custom", "custom", (file,))
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return f"file://{folder}"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def up(tmp_path: Path, store: Path) -> MakeRepository:
    """Start a server of `digits` 1 on the real way, but without a socket."""

    def make(first: str = "", **environ: str) -> Server:
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "handler.py").write_text(HANDLER.format(loads=tmp_path / "loads"))
        settings = {
            "MLIMG_SERVER_DIR": str(tmp_path),
            "MLIMG_MODEL_DIR": str(tmp_path / "models"),
            "MLIMG_STORE_DIR": str(store),
            "MLIMG_REPOSITORY_API": "on",
            "MLIMG_MODEL": first or publish(store / "digits" / "1", "1"),
            **environ,
        }
        facts, state = ServerFacts("python", "1", (), (), {}), State()
        service = Service(state, Settings.parse(settings), facts)
        way = start(settings, service.settings, facts, state, threading.Event())
        if service.settings.repository_api:
            service.open_repository(way)
        return Server(make_app([route for protocol in PROTOCOLS for route in protocol(service)], service), state)

    return make


def load(server: Server, uri: str | None = None, path: str = LOAD) -> Answer:
    return server.post({"parameters": {"model": uri}} if uri else {}, path)


def number(server: Server) -> float:
    found: float = server.post(ASKED).json["outputs"][0]["data"][0]
    return found


def test_h15_the_routes_are_there_only_where_they_are_enabled(up: MakeRepository) -> None:
    server = up(MLIMG_REPOSITORY_API="off")
    assert (load(server).status, server.post({}, UNLOAD).status) == (404, 404)
    assert "model_repository" not in server.get("/v2").json["extensions"]


def test_a_version_takes_the_place_of_another(up: MakeRepository, store: Path) -> None:
    server = up()
    assert "model_repository" in server.get("/v2").json["extensions"]
    told = load(server, publish(store / "digits" / "2", "2"))
    assert (told.status, told.json["version"], number(server)) == (200, "2", 2)
    assert [model.name for model in server.state.models] == ["digits"]


def test_the_version_that_answers_is_not_loaded_again(up: MakeRepository, tmp_path: Path) -> None:
    server = up()
    assert load(server).json["version"] == "1"
    assert (tmp_path / "loads").read_text() == "x"


def test_a_version_that_fails_leaves_the_old_one(up: MakeRepository, store: Path) -> None:
    server = up()
    refused = load(server, publish(store / "digits" / "2", "two"))
    assert refused.status == 422
    assert "could not convert" in refused.json["error"]
    assert number(server) == 1
    assert server.state.index() == [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]


def test_an_altered_version_is_not_loaded(up: MakeRepository, store: Path) -> None:
    server, uri = up(), publish(store / "digits" / "2", "2")
    (store / "digits" / "2" / "number").write_text("3")
    assert (load(server, uri).status, number(server)) == (502, 1)


def test_an_unloaded_model_is_unknown_until_it_is_loaded(up: MakeRepository) -> None:
    server = up()

    async def unload() -> None:
        assert (await server.request("POST", UNLOAD, [b""])).status == 200
        await asyncio.sleep(0.2)

    asyncio.run(unload())
    assert server.post(ASKED).status == 404
    assert server.get("/v2/models/digits/ready").status == 404
    ready = server.get("/v2/health/ready")
    assert (ready.status, ready.json["ready"], ready.json["models"][0]["phase"]) == (200, True, "unloaded")
    gone = {"name": "digits", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert server.state.index() == [gone]
    assert (load(server).status, number(server)) == (200, 1)
    assert server.get("/v2/health/ready").json["version"] == "1"


def test_what_is_beside_the_start_s_repository_is_not_loaded(up: MakeRepository, store: Path) -> None:
    server = up()
    beside = publish(store / "digits2" / "2", "2")
    assert load(server, beside).status == 403
    assert load(server, "oci://registry.invalid/models/digits:2").status == 403
    assert number(server) == 1


@pytest.mark.parametrize(("prefix", "status"), [("", 200), ("/digits", 200), ("/digit", 403), ("/digits/3", 403)])
def test_allowed_prefixes_end_with_a_part_of_a_path(up: MakeRepository, store: Path, prefix: str, status: int) -> None:
    server = up(MLIMG_REPOSITORY_ALLOW=f"oci://registry.invalid/models,file://{store}{prefix}/")
    assert load(server, publish(store / "digits" / "2", "2")).status == status


def test_a_folder_outside_the_stores_is_refused_also_where_it_is_allowed(up: MakeRepository, tmp_path: Path) -> None:
    server = up(MLIMG_REPOSITORY_ALLOW="file:///")
    assert load(server, publish(tmp_path / "outside" / "digits" / "2", "2")).status == 400


def test_a_model_of_another_name_is_a_conflict(up: MakeRepository, store: Path) -> None:
    server = up(MLIMG_REPOSITORY_ALLOW=f"file://{store}")
    other = publish(store / "wine" / "1", "5", "wine")
    refused = load(server, other)
    assert refused.status == 409
    assert "the model wine, not digits" in refused.json["error"]
    assert load(server, other, LOAD.replace("digits", "wine")).status == 200
    assert [model.name for model in server.state.models] == ["digits", "wine"]


def test_an_image_serves_the_model_inside(up: MakeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "is_in_image", lambda *_: True)
    publish(tmp_path / "models", "1")
    inside = {"MLIMG_MODEL": "", "MLIMG_REPOSITORY_ALLOW": "oci://registry.invalid"}
    server = up("unused", **inside)
    refused = load(server, "oci://registry.invalid/models/digits:2")
    assert refused.status == 409
    assert "in this image" in refused.json["error"]
    assert load(server).status == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "not JSON"),
        ({"parameters": []}, "must be an object"),
        ({"parameters": {"config": "{}"}}, "unknown parameter `config`"),
        ({"parameters": {"model": 1}}, "must be a text"),
        ({"parameters": {"model": "digits"}}, "not a model URI"),
        ({"parameters": {"model": "file:///a", "uri": "file:///a"}}, "mean the same"),
    ],
)
def test_a_wrong_request_is_400(up: MakeRepository, body: Any, told: str) -> None:
    refused = up().post(body, LOAD)
    assert refused.status == 400
    assert told in refused.json["error"]


def test_an_unknown_model_is_404(up: MakeRepository) -> None:
    server = up()
    assert load(server, path=LOAD.replace("digits", "wine")).status == 404
    assert server.post({}, UNLOAD.replace("digits", "wine")).status == 404


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CredentialsError("x"), 502),
        (RemoteError("x"), 502),
        (RemoteTemporaryError("x"), 503),
        (IntegrityError("x"), 502),
        (LimitError("x"), 422),
        (LocalIOError("x"), 507),
        (BusyError("x"), 500),
    ],
)
def test_what_goes_wrong_has_the_status_of_its_kind(
    up: MakeRepository, monkeypatch: pytest.MonkeyPatch, error: MlimgError, status: int
) -> None:
    server = up()

    def prepare(*_: object) -> None:
        raise error

    monkeypatch.setattr(start_module, "prepare_located", prepare)
    assert load(server).status == status
    assert (number(server), server.state.coming) == (1, {})


@pytest.mark.parametrize("cache", ["", "/cache"])
def test_files_that_the_server_brought_go_with_their_version(
    up: MakeRepository, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    publish(store / "digits" / "2", "2")
    version = tmp_path / "models" / ".mlimg" / ("0" * 64)
    real = prepare_located

    def brought(*given: Any) -> Any:
        """As if it were fetched: the store's files are copied."""
        prepared = real(*given)
        shutil.copytree(prepared.folder, version)
        monkeypatch.setattr(start_module, "prepare_located", real)
        return replace(prepared, folder=version, held=use(version), cache_hit=False)

    server = up(MLIMG_CACHE_DIR=cache)
    monkeypatch.setattr(start_module, "prepare_located", brought)

    async def there_and_back() -> None:
        for folder in ("2", "1"):
            body = json.dumps({"parameters": {"uri": f"file://{store}/digits/{folder}"}}).encode()
            assert (await server.request("POST", LOAD, [body])).status == 200
        await asyncio.sleep(0.3)

    asyncio.run(there_and_back())
    assert number(server) == 1
    assert version.exists() == bool(cache)


def test_a_load_goes_on_when_the_one_who_asked_for_it_is_cancelled(
    up: MakeRepository, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, uri, real = up(), publish(store / "digits" / "2", "2"), prepare_located
    begun, go_on = threading.Event(), threading.Event()

    def prepare(*given: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return real(*given)

    monkeypatch.setattr(start_module, "prepare_located", prepare)
    body = json.dumps({"parameters": {"uri": uri}}).encode()

    async def cancel() -> None:
        asking = asyncio.create_task(server.request("POST", LOAD, [body]))
        await asyncio.to_thread(begun.wait, 10)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert (await server.request("POST", LOAD, [body])).status == 409
        go_on.set()
        while server.state.coming:
            await asyncio.sleep(0.01)

    asyncio.run(cancel())
    assert number(server) == 2


def test_a_version_that_failed_later_is_loaded_again(up: MakeRepository, tmp_path: Path) -> None:
    server = up()
    server.state.models[0].fail(LimitError("a worker process was killed"))
    assert server.post(ASKED).status == 503
    assert (load(server).json["ready"], number(server)) == (True, 1)
    assert (tmp_path / "loads").read_text() == "xx"
