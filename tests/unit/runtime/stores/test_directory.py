"""Models in folders. Bars: E14 (for folders), F14, and a killed run that the next one finishes."""

import io
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import BusyError, ConflictError, IntegrityError, LocalIOError, ModelError, SpecError
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import ModelPayload, open_store
from mlimg.runtime.stores.directory import CLAIM, DirectoryStore
from tests.support.payloads import FILES, payload
from tests.support.rounds import rounds

OTHER = {"model.joblib": b"other weights", "vocabulary/words.txt": b"four"}
MANIFEST = Digest.of(payload().manifest.to_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in {"mlimg.manifest", CLAIM}}


def test_a_version_is_plain_files_claim_and_manifest(tmp_path: Path) -> None:
    moved: list[int] = []
    stored = DirectoryStore(tmp_path).publish(payload(), on_bytes=moved.append)
    folder = tmp_path / "digits" / "3"
    assert contents(folder) == FILES
    assert (folder / "mlimg.manifest").read_bytes() == payload().manifest.to_bytes()
    assert (folder / CLAIM).read_text() == f"{MANIFEST}\n"
    assert str(stored.uri) == f"file://{folder}@{MANIFEST}"
    assert stored.moved_bytes == sum(moved)
    assert stored.moved_bytes + stored.reused_bytes == payload().manifest.size_bytes


def test_any_user_of_a_container_can_read_a_version_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        DirectoryStore(tmp_path).publish(payload())
    finally:
        os.umask(before)
    folder = tmp_path / "digits" / "3"
    modes = {path.name: path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")] if path.name != CLAIM}
    assert modes == {
        "3": 0o755, "vocabulary": 0o755, "words.txt": 0o644, "model.joblib": 0o644, "mlimg.manifest": 0o644
    }  # fmt: skip


def test_e14_the_same_content_moves_nothing(tmp_path: Path) -> None:
    first = DirectoryStore(tmp_path).publish(payload())
    again = DirectoryStore(tmp_path).publish(payload())
    assert again.existed
    assert (again.uri, again.moved_bytes) == (first.uri, 0)


def test_e14_other_content_is_a_conflict(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.publish(payload())
    with pytest.raises(ConflictError, match="published with other content"):
        store.publish(payload(OTHER))
    assert contents(tmp_path / "digits" / "3") == FILES


def test_a_store_that_replaces_keeps_what_readers_have_open(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, replace=True)
    store.publish(payload())
    folder = os.open(tmp_path / "digits" / "3", os.O_RDONLY)  # as a running container's mount does
    try:
        store.publish(payload(OTHER))
        assert contents(tmp_path / "digits" / "3") == OTHER
        assert Path(f"/proc/self/fd/{folder}/model.joblib").read_bytes() == FILES["model.joblib"]
    finally:
        os.close(folder)


def test_what_is_published_is_independent_of_its_source(tmp_path: Path) -> None:
    source = tmp_path / "model.joblib"
    source.write_bytes(FILES["model.joblib"])
    model = replace(
        payload(), open=lambda path: source.open("rb") if path.name == "model.joblib" else io.BytesIO(FILES[str(path)])
    )
    DirectoryStore(tmp_path / "store").publish(model)
    with source.open("r+b") as file:
        file.write(b"trained again, in place")
    assert contents(tmp_path / "store" / "digits" / "3") == FILES


def test_a_file_that_changed_since_it_was_packed_is_not_published(tmp_path: Path) -> None:
    model = replace(payload(), open=lambda _path: io.BytesIO(b"changed"))
    with pytest.raises(ModelError, match="changed"):
        DirectoryStore(tmp_path).publish(model)
    assert DirectoryStore(tmp_path).published("digits", "3") is None
    DirectoryStore(tmp_path).publish(payload())  # the twin
    assert contents(tmp_path / "digits" / "3") == FILES


def test_a_damaged_version_is_not_taken_for_the_same(tmp_path: Path) -> None:
    DirectoryStore(tmp_path).publish(payload())
    (tmp_path / "digits" / "3" / "model.joblib").write_bytes(b"short")
    with pytest.raises(IntegrityError):
        DirectoryStore(tmp_path).publish(payload())
    assert not DirectoryStore(tmp_path, replace=True).publish(payload()).existed
    assert contents(tmp_path / "digits" / "3") == FILES


@pytest.mark.parametrize("replace_it", [True, False])
def test_a_claim_of_another_model_is_a_conflict_unless_versions_may_be_replaced(
    tmp_path: Path, replace_it: bool
) -> None:
    folder = tmp_path / "digits" / "3"
    folder.mkdir(parents=True)
    (folder / CLAIM).write_text(f"{Digest.of(b'another')}\n")
    (folder / "half").write_bytes(b"of it")
    store = DirectoryStore(tmp_path, replace=replace_it)
    if not replace_it:
        with pytest.raises(ConflictError, match="never finished"):
            store.publish(payload())
        return
    store.publish(payload())
    assert contents(folder) == FILES


def test_files_put_there_by_hand_are_not_mixed_with_a_model(tmp_path: Path) -> None:
    (tmp_path / "digits" / "3").mkdir(parents=True)
    (tmp_path / "digits" / "3" / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError):
        DirectoryStore(tmp_path).publish(payload())


def publish_slowly(root: Path, pause_seconds: float) -> None:
    """Publish, and dawdle before each file."""
    model = payload()

    def dawdle(path: PurePosixPath) -> io.BytesIO:
        time.sleep(pause_seconds)
        return io.BytesIO(FILES[str(path)])

    DirectoryStore(root).publish(replace(model, open=dawdle))


def start(root: Path, pause_seconds: float) -> multiprocessing.Process:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=publish_slowly, args=(root, pause_seconds))
    process.start()
    deadline = time.monotonic() + 20
    while not (root / "digits" / "3" / CLAIM).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process  # type: ignore[return-value]


def test_f14_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    first = start(tmp_path, 0.3)
    stored = DirectoryStore(tmp_path).publish(payload())
    first.join()
    assert first.exitcode == 0
    assert stored.existed


def test_f14_a_second_writer_gives_up_after_a_while(tmp_path: Path) -> None:
    first = start(tmp_path, 0.5)
    with pytest.raises(BusyError):
        DirectoryStore(tmp_path, lock_seconds=0.2).publish(payload())
    first.join()
    assert contents(tmp_path / "digits" / "3") == FILES


def test_f14_the_lock_of_a_dead_writer_is_free_and_its_work_is_finished(tmp_path: Path) -> None:
    first = start(tmp_path, 30)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert DirectoryStore(tmp_path).published("digits", "3") is None
    stored = DirectoryStore(tmp_path, lock_seconds=0.2).publish(payload())
    assert not stored.existed
    assert contents(tmp_path / "digits" / "3") == FILES


def test_f14_of_two_writers_of_different_models_one_wins_whole(tmp_path: Path) -> None:
    def publish(root: Path, model: ModelPayload, start: threading.Barrier) -> str:
        start.wait()
        try:
            DirectoryStore(root).publish(model)
        except ConflictError:
            return "conflict"
        return "published"

    for number in range(rounds()):
        root, start = tmp_path / str(number), threading.Barrier(2)
        with ThreadPoolExecutor(2) as writers:
            ends = [writers.submit(publish, root, payload(files), start) for files in (FILES, OTHER)]
        results = [end.result() for end in ends]
        assert sorted(results) == ["conflict", "published"]
        winner = (FILES, OTHER)[results.index("published")]
        assert contents(root / "digits" / "3") == winner


@pytest.mark.parametrize("steps", range(8))
def test_a_run_that_dies_anywhere_is_finished_by_the_next(
    tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [steps]
    real = os.fsync

    def dying(descriptor: int) -> None:
        if left[0] == 0:
            raise OSError(5, "the power went")
        left[0] -= 1
        real(descriptor)

    monkeypatch.setattr(os, "fsync", dying)
    with pytest.raises(LocalIOError):
        DirectoryStore(tmp_path).publish(payload())
    monkeypatch.undo()
    DirectoryStore(tmp_path).publish(payload())
    assert contents(tmp_path / "digits" / "3") == FILES


@pytest.mark.parametrize(
    "text",
    ["ftp://host/models", "s3://Bucket/models", "gs://", "oci://host/models:1", "oci://UPPER_/x", "models", "oci://"],
)
def test_what_is_no_store_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="store"):
        open_store(text, Access())


@pytest.mark.parametrize("length", [0, 1, 40, 71])
def test_a_claim_that_a_killed_run_wrote_in_part_is_its_own(tmp_path: Path, length: int) -> None:
    folder = tmp_path / "digits" / "3"
    folder.mkdir(parents=True)
    (folder / CLAIM).write_bytes(f"{MANIFEST}\n".encode()[:length])
    DirectoryStore(tmp_path).publish(payload())
    assert contents(folder) == FILES
    assert (folder / CLAIM).read_text() == f"{MANIFEST}\n"


def test_a_part_of_a_claim_that_is_not_ours_is_a_conflict(tmp_path: Path) -> None:
    """The twin, one byte away."""
    folder = tmp_path / "digits" / "3"
    folder.mkdir(parents=True)
    part = bytearray(f"{MANIFEST}\n".encode()[:40])
    part[-1] ^= 1
    (folder / CLAIM).write_bytes(part)
    with pytest.raises(ConflictError):
        DirectoryStore(tmp_path).publish(payload())
