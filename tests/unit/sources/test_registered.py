"""What a registry of models says is not believed: where the files are, what they are called, who may be asked.

The registry's own client is tested against a real server, in `integration/test_sources.py`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mlimg.runtime.errors import CredentialsError, LimitError, ModelError, RemoteError
from mlimg.runtime.oci import Access
from mlimg.sources import ModelSource, registered
from mlimg.sources.remote import Wanted
from mlimg.sources.selection import EVERYTHING, Selection
from tests.support.faults import Answer, FaultServer, Request
from tests.support.models import content
from tests.support.webfiles import WebFiles

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
FILES = {"MLmodel": b"flavors: {}", "data/model.bin": b"weights" * 1000}
Opened = Callable[..., ModelSource]


def listing(*entries: dict[str, object]) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps({"files": list(entries)}).encode())


def tracking(request: Request) -> Answer:
    """A tracking server that keeps `FILES` below ``1/run/model``."""
    parts = urlsplit(request.path)
    if parts.path != ARTIFACTS:
        return WebFiles({f"{ARTIFACTS}/1/run/model/{name}".lstrip("/"): data for name, data in FILES.items()})(request)
    asked = parse_qs(parts.query)["path"]
    if asked == ["1/run/model"]:
        return listing({"path": "MLmodel", "is_dir": False, "file_size": "11"}, {"path": "data", "is_dir": True})
    assert asked == ["1/run/model/data"]
    return listing({"path": "model.bin", "is_dir": False, "file_size": 7000})


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(tracking) as server:
        yield server


@pytest.fixture
def opened(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open a version whose files are where the registry says, by default on the server itself."""

    def open_version(
        place: str = "mlflow-artifacts:/1/run/model", allowed: tuple[Path, ...] = (), selection: Selection = EVERYTHING
    ) -> ModelSource:
        monkeypatch.setattr(registered, "_where", lambda *_: ("digits", "3", place))
        environ = {
            "MLFLOW_TRACKING_URI": f"http://{server.host}",
            "MLFLOW_TRACKING_USERNAME": "alice",
            "MLFLOW_TRACKING_PASSWORD": "canary",
        }
        access = Access(environ=environ, attempts=2, backoff_seconds=0.01)
        return registered.open_address(Wanted("models:/digits/3", selection, allowed=allowed), access)

    return open_version


def test_folders_are_walked_and_files_read_with_the_credentials(server: FaultServer, opened: Opened) -> None:
    source = opened()
    assert content(source) == FILES
    assert source.inventory().origin == {"uri": "models:/digits", "revision": "3"}
    assert {request.headers.get("Authorization") for request in server.requests} == {"Basic YWxpY2U6Y2FuYXJ5"}


@pytest.mark.parametrize("token", ["canary\n", "can\nary", " canary"])
def test_a_token_that_no_header_can_hold_is_told_without_it(server: FaultServer, token: str) -> None:
    """MLflow's own client quotes it."""
    environ = {"MLFLOW_TRACKING_URI": f"http://{server.host}", "MLFLOW_TRACKING_TOKEN": token}
    with pytest.raises(CredentialsError, match="MLFLOW_TRACKING_TOKEN") as caught:
        registered.open_address(Wanted("models:/digits/3", EVERYTHING), Access(environ=environ, attempts=1))
    assert "can" not in f"{caught.value.message} {caught.value.hint}"
    assert server.count() == 0


def test_a_token_is_sent_as_it_is(server: FaultServer, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = registered._credentials
    token = Access(environ={"MLFLOW_TRACKING_TOKEN": "canary"})
    monkeypatch.setattr(registered, "_credentials", lambda _access: ours(token))
    assert content(opened()) == FILES
    assert {request.headers.get("Authorization") for request in server.requests} == {"Bearer canary"}


def test_the_servers_own_name_in_an_address_is_itself_and_another_is_not_asked(
    server: FaultServer, opened: Opened
) -> None:
    assert content(opened(f"mlflow-artifacts://{server.host}/1/run/model")) == FILES
    before = server.count()
    with FaultServer(tracking) as other, pytest.raises(RemoteError, match="another server"):
        opened(f"mlflow-artifacts://{other.host}/1/run/model")
    assert (server.count(), other.count()) == (before, 0)


def test_a_folder_of_this_machine_must_be_allowed(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    for place in (str(tmp_path), tmp_path.as_uri()):
        with pytest.raises(ModelError) as caught:
            opened(place)
        assert f"--allow-path {tmp_path}" in caught.value.hint
        source = opened(place, (tmp_path,))
        assert content(source) == {"model.bin": b"weights"}
        assert source.inventory().origin == {"uri": "models:/digits", "revision": "3"}
    with pytest.raises(ModelError, match="outside the project"):
        opened(f"{tmp_path}/allowed/..", (tmp_path / "allowed",))


@pytest.mark.parametrize("place", ["dbfs:/x", "wasbs://c@a/x", "https://host/x", "s3://bucket", "gs://bucket/../x"])
def test_a_place_that_is_not_read_is_told(opened: Opened, place: str) -> None:
    with pytest.raises(RemoteError, match="models:/digits/3"):
        opened(place)


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../x", "is_dir": False, "file_size": 1},
        {"path": "..", "is_dir": True},
        {"path": "", "is_dir": True},
        {"path": "/etc/passwd", "is_dir": False, "file_size": 1},
        {"path": "x", "is_dir": False, "file_size": -1},
        {"path": "x", "is_dir": False},
        {"is_dir": False, "file_size": 1},
        "x",
    ],
)
def test_a_list_that_makes_no_sense_is_refused(server: FaultServer, opened: Opened, entry: dict[str, object]) -> None:
    server.backend = lambda _: listing(entry)
    with pytest.raises(RemoteError, match="makes no sense"):
        opened()


def test_folders_without_end_are_over_a_limit(
    server: FaultServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registered, "_MAX_FOLDERS", 20)
    server.backend = lambda _: listing({"path": "again", "is_dir": True})
    with pytest.raises(LimitError):
        opened()
    assert server.count() <= 21


def test_a_selection_chooses(opened: Opened) -> None:
    assert list(content(opened(selection=Selection(("data/**",))))) == ["data/model.bin"]
