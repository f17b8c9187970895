"""A model is verified before anybody parses it. Bars: G2, G6, G10."""

import os
import threading
from pathlib import Path

import pytest

from mlimg.runtime.bring import access_from, bring, fetch_places
from mlimg.runtime.errors import IntegrityError, LocalIOError, MlimgError, ModelError, SpecError, Stopped
from mlimg.runtime.locate import Located
from mlimg.runtime.prepare import PreparedModel, prepare
from tests.support.faults import FaultServer
from tests.support.payloads import FILES, payload, publish_in_memory
from tests.support.registry import MemoryRegistry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model."""
    for name, data in {**FILES, "mlimg.manifest": payload().manifest.to_bytes()}.items():
        (tmp_path / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / name).write_bytes(data)
    return tmp_path / "models"


def run(folder: Path, stop: threading.Event | None = None, **environ: str) -> PreparedModel:
    return prepare({"MLIMG_MODEL_DIR": str(folder), **environ}, lambda _: None, stop or threading.Event())


@pytest.fixture(params=["image", "folder"])
def kind(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the model lies: in the image's own layers or on a volume."""
    kind: str = request.param
    monkeypatch.setattr("mlimg.runtime.prepare.locate", lambda _: Located(kind, folder))  # type: ignore[arg-type]
    return kind


def test_a_complete_model_is_ready(folder: Path, kind: str) -> None:
    model = run(folder)
    assert (model.folder, model.source, model.manifest) == (folder, str(folder), payload().manifest)


def alter(folder: Path) -> None:
    data = FILES["model.joblib"]
    (folder / "model.joblib").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def shorten(folder: Path) -> None:
    (folder / "model.joblib").write_bytes(FILES["model.joblib"][:-1])


def drop(folder: Path) -> None:
    (folder / "vocabulary" / "words.txt").unlink()


def add(folder: Path) -> None:
    (folder / "evil.joblib").write_bytes(b"evil")


def link(folder: Path) -> None:
    (folder / "model.joblib").unlink()
    outside = folder.parent / "outside"
    outside.write_bytes(FILES["model.joblib"])
    (folder / "model.joblib").symlink_to(outside)


def pipe(folder: Path) -> None:
    (folder / "model.joblib").unlink()
    os.mkfifo(folder / "model.joblib")


def damage(folder: Path) -> None:
    (folder / "mlimg.manifest").write_bytes(payload().manifest.to_bytes()[:-5])


CHANGES = [
    (shorten, IntegrityError, "model.joblib"),
    (drop, ModelError, "words.txt"),
    (add, IntegrityError, "evil.joblib"),
    (link, IntegrityError, "model.joblib"),
    (pipe, IntegrityError, "model.joblib"),
    (damage, IntegrityError, "mlimg.manifest"),
]


@pytest.mark.parametrize(("change", "error", "named"), CHANGES)
def test_g2_a_model_that_is_not_whole_is_refused_by_name(
    folder: Path, kind: str, change: object, error: type[MlimgError], named: str
) -> None:
    change(folder)  # type: ignore[operator]
    with pytest.raises(error, match=named):
        run(folder)


def test_g2_content_is_compared_on_a_volume_and_on_request_in_the_image(folder: Path, kind: str) -> None:
    alter(folder)
    if kind == "image":
        run(folder)  # its layers were verified when it was pulled
    with pytest.raises(IntegrityError, match="altered"):
        run(folder, MLIMG_VERIFY="full" if kind == "image" else "auto")
    run(folder, MLIMG_VERIFY="off")


def test_a_folder_without_a_manifest_is_served_unless_one_is_required(folder: Path, kind: str) -> None:
    (folder / "mlimg.manifest").unlink()
    assert run(folder).manifest is None
    with pytest.raises(ModelError, match="has no mlimg"):
        run(folder, MLIMG_REQUIRE_MANIFEST="1")


def test_a_model_that_is_still_being_published_is_refused(folder: Path, kind: str) -> None:
    (folder / "mlimg.manifest").unlink()
    (folder / ".claim").write_text("sha256:…")
    with pytest.raises(ModelError, match="incomplete"):
        run(folder)


def test_a_pinned_folder_is_held_to_its_digest(folder: Path) -> None:
    pinned = f"file://{folder}@sha256:{'0' * 64}"
    with pytest.raises(IntegrityError, match="is not the one"):
        run(folder.parent / "none", MLIMG_MODEL=pinned, MLIMG_STORE_DIR=str(folder.parent))


@pytest.mark.parametrize(
    "setting",
    [{"MLIMG_VERIFY": "sometimes"}, {"MLIMG_REQUIRE_MANIFEST": "maybe"}],
)
def test_a_setting_that_makes_no_sense_is_refused(folder: Path, kind: str, setting: dict[str, str]) -> None:
    (folder / "mlimg.manifest").unlink()
    with pytest.raises(SpecError, match=next(iter(setting))):
        run(folder, **setting)


def test_hashing_stops_when_asked(folder: Path, kind: str) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        run(folder, stop, MLIMG_VERIFY="full")


def test_a_model_is_fetched_to_the_first_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryRegistry()
    publish_in_memory(memory, payload())
    blocked = tmp_path / "blocked"
    blocked.touch()  # a file: not even root makes a folder of it
    environ = {"MLIMG_CACHE_DIR": str(blocked), "TMPDIR": str(tmp_path / "tmp")}
    with FaultServer(memory) as server:
        environ["MLIMG_MODEL"] = f"oci://{server.host}/models/digits:3"
        model = run(blocked, **environ)
        assert model.folder.is_relative_to(tmp_path / "tmp")
        assert model.source.startswith(environ["MLIMG_MODEL"] + "@sha256:")
        with pytest.raises(LocalIOError, match="no folder can be written"):
            run(blocked, **(environ | {"TMPDIR": str(blocked)}))


def test_a_model_in_a_folder_that_cannot_be_written_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an init container fetches to a volume that the server mounts read-only."""
    memory = MemoryRegistry()
    publish_in_memory(memory, payload())
    shared, own = tmp_path / "shared", tmp_path / "own"
    environ = {"MLIMG_CACHE_DIR": str(own), "TMPDIR": str(own)}
    with FaultServer(memory) as server:
        environ["MLIMG_MODEL"] = f"oci://{server.host}/models/digits:3"
        fetched = run(shared, **environ)
        monkeypatch.setattr("mlimg.runtime.fetch.first_writable", lambda _places: pytest.fail("it was fetched again"))
        found = run(shared, **environ)
        offline = run(shared, **(environ | {"MLIMG_MODEL": fetched.source, "MLIMG_OFFLINE": "1"}))
    assert found.folder == offline.folder == fetched.folder
    assert found.cache_hit


def test_a_cache_that_is_named_comes_first() -> None:
    named = {"MLIMG_MODEL_DIR": "/m", "MLIMG_CACHE_DIR": "/c", "TMPDIR": "/t"}
    assert fetch_places(named) == [Path("/c"), Path("/m"), Path("/t")]
    assert fetch_places({}) == [Path("/models"), Path("/cache"), Path("/tmp")]


def test_replicas_with_folders_of_their_own_share_a_cache(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    publish_in_memory(memory, payload())
    with FaultServer(memory) as server:
        shared = {"MLIMG_CACHE_DIR": str(tmp_path / "c"), "MLIMG_MODEL": f"oci://{server.host}/models/digits:3"}
        models = [run(tmp_path / f"own-{number}", **shared, MLIMG_CACHE_LIMIT_GIB="1") for number in range(2)]
    assert [model.cache_hit for model in models] == [False, True]
    assert models[0].folder == models[1].folder
    assert models[0].folder.is_relative_to(tmp_path / "c")


def test_a_model_is_brought_to_one_folder_whatever_else_is_here(folder: Path, tmp_path: Path) -> None:
    memory = MemoryRegistry()
    publish_in_memory(memory, payload())
    environ = {"MLIMG_MODEL_DIR": str(folder), "MLIMG_CACHE_DIR": str(tmp_path / "cache")}
    with FaultServer(memory) as server:
        uri = f"oci://{server.host}/models/digits:3"
        model = bring(uri, tmp_path / "into", environ, lambda _: None, threading.Event())
    assert model.folder.is_relative_to(tmp_path / "into")
    assert {name: (model.folder / name).read_bytes() for name in FILES} == FILES
    assert not (tmp_path / "cache").exists()
    with pytest.raises(SpecError, match="used in place"):
        bring(f"file://{folder}", tmp_path / "into", {}, lambda _: None, threading.Event())


@pytest.mark.parametrize("text", ["digits:3", "ftp://host/digits", "oci://169.254.169.254/digits:3"])
def test_what_cannot_be_brought_is_told_as_it_was_given(text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        bring(text, tmp_path, {}, lambda _: None, threading.Event())
    assert caught.value.message.startswith(f"{text}: ")


def test_the_variables_say_how_registries_are_reached(tmp_path: Path) -> None:
    access = access_from({"MLIMG_INSECURE_REGISTRIES": "lab:5000, other", "MLIMG_CA_BUNDLE": str(tmp_path / "ca.pem")})
    assert (access.scheme("lab:5000"), access.scheme("lab"), access.scheme("127.0.0.1:5000")) == (
        "http",
        "https",
        "http",
    )
    assert access.scheme("127.evil.example") == "https"
    assert access.ca_bundle == tmp_path / "ca.pem"
