"""The way up in one process: what is prepared, imported, loaded and warmed, and in which order things go wrong."""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.errors import ModelError, RemoteTemporaryError, Stopped, TemplateError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.progress import Progress
from mlimg.runtime.server import start as start_module
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.server.start import start
from mlimg.runtime.server.state import Phase, State

HANDLER = "def load(model_dir, options): return model_dir\ndef predict(model, inputs): return inputs\n"
FACTS = ServerFacts("python", "1", (), (), {})


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, prepare: Any, handler: str = HANDLER) -> State:
    (folder / "handler.py").write_text(handler)
    monkeypatch.setattr(start_module, "prepare", prepare)
    state, stop = State(), threading.Event()
    start({}, Settings.parse({"MLIMG_SERVER_DIR": str(folder)}), FACTS, state, stop)
    return state


def at_once(_environ: Mapping[str, str], _progress: Any, _stop: threading.Event) -> PreparedModel:
    return PreparedModel(Path("/models"), None, "file:///models", 5, 0.1, cache_hit=True)


def test_a_started_server_is_ready_and_tells_what_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run(tmp_path, monkeypatch, at_once).to_json()
    assert told.pop("seconds") >= 0
    assert told == {
        "ready": True,
        "model": "model",
        "version": None,
        "digest": None,
        "source": "file:///models",
        "bytes": 5,
        "cacheHit": True,
    }


def test_the_handler_is_imported_while_the_model_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = tmp_path / "imported"

    def prepare(*_: Any) -> PreparedModel:
        deadline = time.monotonic() + 10
        while not imported.exists():
            assert time.monotonic() < deadline, "the import waits for the fetch"
            time.sleep(0.01)
        return at_once({}, None, threading.Event())

    run(tmp_path, monkeypatch, prepare, f"open({str(imported)!r}, 'w').close()\n{HANDLER}")


def test_a_handler_that_cannot_be_imported_stops_the_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(_environ: Any, _progress: Any, stop: threading.Event) -> PreparedModel:
        assert stop.wait(10), "nobody stopped the fetch"
        raise Stopped

    with pytest.raises(TemplateError, match="ZeroDivisionError"):
        run(tmp_path, monkeypatch, prepare, "1/0")


def test_a_fetch_that_fails_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: Any) -> PreparedModel:
        raise RemoteTemporaryError("no answer")

    with pytest.raises(RemoteTemporaryError):
        run(tmp_path, monkeypatch, prepare)


def test_g13_a_model_that_fails_to_load_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="cannot be loaded: FileNotFoundError"):
        run(tmp_path, monkeypatch, at_once, HANDLER.replace("return model_dir", "return open('/not/there')"))


def test_a_fetch_under_way_is_told_with_bytes_and_rate() -> None:
    state = State()
    assert state.to_json()["phase"] == "starting"
    state.report(Progress("fetching", 0, 1000))
    state.report(Progress("fetching", 500, 1000))
    told = state.to_json()
    assert told["ready"] is False
    assert (told["phase"], told["bytes"], told["bytesTotal"]) == ("fetching", 500, 1000)
    assert told["bytesPerSecond"] > 0
    state.enter(Phase.LOADING)
    assert "bytes" not in state.to_json()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"template": 1}'])
def test_a_damaged_server_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    with pytest.raises(TemplateError, match=r"server\.json"):
        ServerFacts.load(tmp_path)


def test_a_missing_server_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        ServerFacts.load(tmp_path)


def test_server_json_is_read_as_the_build_writes_it(tmp_path: Path) -> None:
    written = {"template": "sklearn", "templateVersion": "1", "frameworks": ["sklearn"], "formats": [], "options": {}}
    (tmp_path / "server.json").write_text(json.dumps(written))
    assert ServerFacts.load(tmp_path) == ServerFacts("sklearn", "1", ("sklearn",), (), {})
