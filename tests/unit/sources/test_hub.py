"""The hub's client against a hub in memory; large files come from another host, as they do there."""

import random
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    CredentialsError,
    IntegrityError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
    UsageError,
)
from mlimg.runtime.oci import Access
from mlimg.sources import ModelSource
from mlimg.sources.remote import Wanted, open_remote
from mlimg.sources.selection import EVERYTHING, Selection
from tests.support.faults import Answer, Fault, FaultServer
from tests.support.hub import COMMIT, Hub
from tests.support.models import content
from tests.support.webfiles import WebFiles

pytest.importorskip("huggingface_hub")

WEIGHTS = random.Random(7).randbytes(400_000)
FILES = {"config.json": b"{}", "weights/model.safetensors": WEIGHTS, ".gitattributes": b"* text"}
LARGE = frozenset({"weights/model.safetensors"})


@pytest.fixture
def store() -> Iterator[FaultServer]:
    with FaultServer(WebFiles(FILES)) as store:
        yield store


@pytest.fixture
def hub(store: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with FaultServer(Hub(FILES, LARGE, store.host)) as hub:
        yield hub


def opened(
    hub: FaultServer, address: str = "hf://organisation/digits", selection: Selection = EVERYTHING, **environ: str
) -> ModelSource:
    environment = {"HF_ENDPOINT": f"http://{hub.host}", "HF_TOKEN": "canary", **environ}
    access = Access(backoff_seconds=0.01, stall_seconds=2, attempts=3, environ=environment)
    return open_remote(Wanted(address, selection), access)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_repository_is_read_at_one_commit(hub: FaultServer, revision: str) -> None:
    source = opened(hub, f"hf://organisation/digits{revision}")
    assert source.inventory().origin == {"uri": "hf://organisation/digits", "revision": COMMIT}
    assert content(source) == FILES
    assert hub.count("GET", f"/resolve/{COMMIT}/") == len(FILES)


def test_the_hub_tells_the_digest_of_large_files_and_every_state_of_the_others(hub: FaultServer) -> None:
    files = {str(file.path): file for file in opened(hub).inventory()}
    assert files["weights/model.safetensors"].sha256 == Digest.of(WEIGHTS)
    assert files["config.json"].sha256 is None
    assert COMMIT in str(files["config.json"].fingerprint)


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: FaultServer, store: FaultServer) -> None:
    """E15."""
    assert isinstance(hub.backend, Hub)
    hub.backend.token = "canary"
    content(opened(hub))
    sent = [{name.lower(): value for name, value in request.headers.items()} for request in hub.requests]
    assert {headers.get("authorization") for headers in sent} == {"Bearer canary"}
    assert store.count() == 1
    assert "canary" not in str([dict(request.headers) for request in store.requests])


def test_a_token_is_taken_without_its_line_feed_and_shown_to_nobody(hub: FaultServer) -> None:
    assert isinstance(hub.backend, Hub)
    hub.backend.token = "canary"
    assert content(opened(hub, HF_TOKEN="canary\n")) == FILES  # as a secret's file gives it
    with pytest.raises(CredentialsError, match="HF_TOKEN") as caught:
        opened(hub, HF_TOKEN="can\nary")
    assert "ary" not in caught.value.message.replace("HF_TOKEN", "")


def test_a_selection_leaves_files_out(hub: FaultServer) -> None:
    assert list(content(opened(hub, selection=Selection(("**/*.safetensors",))))) == ["weights/model.safetensors"]
    with pytest.raises(ModelError, match="matches no file"):
        opened(hub, selection=Selection(("**/*.onnx",)))


def test_another_sha256_than_listed_is_refused(hub: FaultServer) -> None:
    assert isinstance(hub.backend, Hub)
    hub.backend.sha256s = {"weights/model.safetensors": "0" * 64}
    source = opened(hub)
    with pytest.raises(IntegrityError, match="other content"):
        content(source)


@pytest.mark.parametrize("path", ["../x", "con", "a\x1bb", "mlimg.manifest"])
def test_a_name_that_is_none_is_refused(hub: FaultServer, path: str) -> None:
    assert isinstance(hub.backend, Hub)
    hub.backend.files = {path: b"x"}
    with pytest.raises(ModelError):
        opened(hub)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(401, {"X-Error-Code": "RepoNotFound"}), CredentialsError),
        (Answer(403, {"X-Error-Code": "GatedRepo"}), CredentialsError),
        (Answer(404, {"X-Error-Code": "RevisionNotFound"}), RemoteError),
        (Answer(500), RemoteTemporaryError),
        (Answer(429), RemoteTemporaryError),
        (Answer(200, {"Content-Type": "application/json"}, b"[]"), RemoteError),
        (Answer(200, {"Content-Type": "application/json"}, b"<html>"), RemoteError),
        (Answer(400), RemoteError),
    ],
    ids=["401", "gated", "revision", "500", "429", "list", "html", "400"],
)
def test_a_refusal_is_told(hub: FaultServer, answer: Answer, error: type[Exception]) -> None:
    hub.faults.append(Fault("GET", times=99, answer=answer))
    with pytest.raises(error) as caught:
        opened(hub)
    assert type(caught.value) is error
    assert "canary" not in str(caught.value)


def test_what_passes_is_asked_for_again(hub: FaultServer) -> None:
    fault = Fault("GET", "/api/", times=2, answer=Answer(503))
    hub.faults.append(fault)
    assert content(opened(hub)) == FILES
    assert fault.fired == 2


def test_a_hub_that_does_not_answer_is_temporary(hub: FaultServer) -> None:
    hub.faults.append(Fault("GET", times=99, reset_at=0))
    with pytest.raises(RemoteTemporaryError):
        opened(hub)


def test_a_file_without_a_length_is_refused(hub: FaultServer) -> None:
    def forget(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        return replace(answer, headers={}, body=answer.body.replace(b'"size": 2', b'"size": null'))

    hub.faults.append(Fault("GET", "/api/", change=forget))
    with pytest.raises(RemoteError, match=r"does not tell the length of `config\.json`"):
        opened(hub)


def test_a_hub_is_reached_by_tls_or_on_this_machine(hub: FaultServer) -> None:
    with pytest.raises(RemoteError, match="HF_ENDPOINT speaks plain http"):
        opened(hub, HF_ENDPOINT="http://hub.example.com")


def test_without_the_package_the_way_to_install_it_is_told(hub: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError) as caught:
        opened(hub)
    assert caught.value.hint == "pip install 'mlimg[hf]'"


def test_a_token_that_cannot_be_had_is_told(hub: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub  # noqa: PLC0415 (skipped above where it is not installed)

    def fail() -> str:
        raise OSError("canary")

    monkeypatch.setattr(huggingface_hub, "get_token", fail)
    with pytest.raises(CredentialsError) as caught:
        opened(hub, HF_TOKEN="")
    assert "canary" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert content(opened(hub, HF_TOKEN="")) == FILES
    assert all("uthorization" not in str(request.headers) for request in hub.requests)
