"""The way up in one process: what is prepared, imported, loaded and warmed, and in which order things go wrong."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.errors import ModelError, RemoteTemporaryError, Stopped, TemplateError
from mlimg.runtime.locate import Located
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.progress import Progress
from mlimg.runtime.server import start as start_module
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.server.start import start
from mlimg.runtime.server.state import ModelState, Phase, State
from tests.support.payloads import payload

HANDLER = "def load(model_dir, options): return model_dir\ndef predict(model, inputs): return inputs\n"
FACTS = ServerFacts("python", "1", (), (), {})


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, prepare: Any, handler: str = HANDLER) -> State:
    (folder / "handler.py").write_text(handler)
    monkeypatch.setattr(start_module, "prepare_located", prepare)
    monkeypatch.setattr(start_module, "locate_all", lambda _: (Located("folder", Path("/models")),))
    state, stop = State(), threading.Event()
    start({"MLIMG_SERVER_DIR": str(folder)}, Settings.parse({}), FACTS, state, stop)
    return state


def at_once(*_: Any) -> PreparedModel:
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
        return at_once()

    run(tmp_path, monkeypatch, prepare, f"open({str(imported)!r}, 'w').close()\n{HANDLER}")


def test_a_handler_that_cannot_be_imported_stops_the_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(_place: Any, _environ: Any, _progress: Any, stop: threading.Event) -> PreparedModel:
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


class Several:
    """A start of models that are what `outcomes` say: prepared, or an error."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **outcomes: PreparedModel | Exception) -> None:
        (folder / "handler.py").write_text(HANDLER)
        self._folder = folder
        self.state = State()
        located = tuple(Located("folder", Path(name), name=name) for name in outcomes)

        def prepare(place: Located, *_: Any) -> PreparedModel:
            outcome = outcomes[place.name]
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(start_module, "prepare_located", prepare)
        monkeypatch.setattr(start_module, "locate_all", lambda _: located)

    def start(self, facts: ServerFacts = FACTS) -> dict[str, Any]:
        start({"MLIMG_SERVER_DIR": str(self._folder)}, Settings.parse({}), facts, self.state, threading.Event())
        return {model["model"]: model.get("reason", "up") for model in self.state.to_json()["models"]}


def named(name: str, framework: str = "sklearn") -> PreparedModel:
    manifest = replace(payload(name=name).manifest, framework=framework)
    return PreparedModel(Path("/models"), manifest, f"oci://host/{name}:3", 0, 0.0, cache_hit=True)


def test_of_several_models_one_that_fails_leaves_the_others_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = Several(
        tmp_path,
        monkeypatch,
        lost=RemoteTemporaryError("no answer"),
        digits=named("digits"),
        odd=ZeroDivisionError("0"),
    )
    assert several.start() == {"lost": "no answer", "digits": "up", "odd": "ZeroDivisionError: 0"}
    assert several.state.ready


def test_when_all_of_several_models_fail_the_first_ones_error_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = Several(tmp_path, monkeypatch, a=RemoteTemporaryError("no answer"), b=ModelError("broken"))
    with pytest.raises(RemoteTemporaryError):
        several.start()
    assert not several.state.ready


def test_of_several_models_each_is_held_against_what_the_server_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = Several(tmp_path, monkeypatch, digits=named("digits"), wine=named("wine", "xgboost"))
    told = several.start(ServerFacts("sklearn", "1", ("sklearn",), ("joblib",), {}))
    assert told.pop("digits") == "up"
    assert "xgboost" in told["wine"]


def test_several_models_without_manifest_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Several(tmp_path, monkeypatch, digits=named("digits"), nameless=at_once()).start()
    assert told.pop("digits") == "up"
    assert "mlimg.manifest" in told["nameless"]


@pytest.mark.parametrize("order", [("other", "digits"), ("digits", "other")])
def test_a_model_that_turns_out_to_have_anothers_name_is_the_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    told = Several(tmp_path, monkeypatch, **{name: named("digits") for name in order}).start()
    assert told.pop("digits") == "up"
    assert "second model `digits`" in told["other"]


def test_a_fetch_under_way_is_told_with_bytes_and_rate() -> None:
    assert State().to_json()["phase"] == "starting"
    model = ModelState()
    state = State((model,))
    model.report(Progress("fetching", 0, 1000))
    model.report(Progress("fetching", 500, 1000))
    told = state.to_json()
    assert told["ready"] is False
    assert (told["phase"], told["bytes"], told["bytesTotal"]) == ("fetching", 500, 1000)
    assert told["bytesPerSecond"] > 0
    model.enter(Phase.LOADING)
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
