"""Versions that share a folder. Bars: G6, G7."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from mlimg.runtime import version_folder
from mlimg.runtime.cache import copies, evict, take_over, use, version_folders
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError
from mlimg.runtime.fetch import FetchedModel, fetch
from mlimg.runtime.locks import try_lock
from mlimg.runtime.manifest import ModelFile, ModelManifest
from mlimg.runtime.oci import Access
from mlimg.runtime.reference import ModelUri
from tests.support.faults import Answer, Fault, FaultServer
from tests.support.payloads import payload, publish_in_memory
from tests.support.registry import MemoryRegistry

WEIGHTS = random.Random(1).randbytes(200_000)
FILES = {"base.bin": WEIGHTS, "head.bin": random.Random(2).randbytes(150_000), "small.txt": b"small"}
QUICK = Access(backoff_seconds=0.01, stall_seconds=1, attempts=2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kilobytes do for megabytes."""
    monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", 100_000)
    monkeypatch.setattr("mlimg.runtime.stores.oci_origin._WORTH_RANGES_BYTES", 100_000)
    monkeypatch.setattr("mlimg.runtime.part_file.BLOCK_BYTES", 10_000)


def layer(files: dict[str, bytes], which: int) -> str:
    digest = payload(files).layers[which].digest
    assert digest is not None
    return digest.hex


def published(memory: MemoryRegistry, version: str, files: dict[str, bytes]) -> None:
    publish_in_memory(memory, payload(files, version=version))


def get(server: FaultServer, into: Path, version: str = "3", **options: Any) -> FetchedModel:
    uri = ModelUri.parse(f"oci://{server.host}/models/digits:{version}")
    arguments = {"access": QUICK, "progress": lambda _: None, "stop": threading.Event(), "patience_seconds": 5}
    return fetch(uri, options.pop("places", [into]), **(arguments | options))


def version(place: Path, number: int, files: dict[str, bytes], *, used: float) -> Path:
    """A version that was put there, last used at some time."""
    folder = place / ".mlimg" / f"{number:064x}"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    listed = tuple(ModelFile(PurePosixPath(name), len(data), Digest.of(data)) for name, data in files.items())
    (folder / "mlimg.manifest").write_bytes(ModelManifest("m", str(number), "python", "joblib", listed).to_bytes())
    lock = folder.with_name(f"{folder.name}.lock")
    lock.touch()
    os.utime(lock, (used, used))
    return folder


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_new_version_fetches_only_what_no_other_has(
    tmp_path: Path, hard_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimg.runtime.cache._cloned", lambda *_: None)
    if not hard_links:
        monkeypatch.setattr("os.link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "another file system")))
    memory = MemoryRegistry()
    newer = {**FILES, "head.bin": random.Random(3).randbytes(150_000)}
    published(memory, "3", FILES)
    published(memory, "4", newer)
    with FaultServer(memory) as server:
        first = get(server, tmp_path)
        asked_before = len(server.requests)
        second = get(server, tmp_path, "4")
        blobs = [r for r in server.requests[asked_before:] if layer(FILES, 0) in r.path]
        assert len(blobs) == 2  # a look at its head and end, and none of its bytes
    assert second.fetched_bytes < first.fetched_bytes - len(WEIGHTS) + 1000
    assert {name: (second.folder / name).read_bytes() for name in newer} == newer
    assert (first.folder / "base.bin").samefile(second.folder / "base.bin") == hard_links


SMALL = {"config.json": b"{}" * 2000, "run+x": b"#!/bin/sh\n" * 300, "tokens/words.txt": b"one two three " * 500}


@pytest.fixture
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last layer be too long to be kept in memory, so that what is read of it is not proven."""
    monkeypatch.setattr("mlimg.runtime.stores.oci_origin._HELD_BYTES", 0)


def whole_reads(server: FaultServer, files: dict[str, bytes], version: str, which: int) -> int:
    """How often a layer was asked for, but for the look at its manifest."""
    digest = payload(files, version=version).layers[which].digest
    assert digest is not None
    return server.count("GET", digest.hex) - (which in {-1, len(payload(files).layers) - 1})


@pytest.mark.usefixtures("nothing_held")
def test_a_new_version_fetches_no_small_files_that_another_has(tmp_path: Path) -> None:
    older = {"base.bin": WEIGHTS, **SMALL}
    newer = {"base.bin": random.Random(3).randbytes(200_000), **SMALL}
    memory = MemoryRegistry()
    published(memory, "3", older)
    published(memory, "4", newer)
    with FaultServer(memory) as server:
        get(server, tmp_path)
        second = get(server, tmp_path, "4")
        assert whole_reads(server, older, "3", -1) == 1
        assert whole_reads(server, newer, "4", -1) == 0
        assert get(server, tmp_path, "4").cache_hit
    assert second.fetched_bytes == len(newer["base.bin"])
    assert {name: (second.folder / name).read_bytes() for name in newer} == newer
    assert [(second.folder / name).stat().st_mode & 0o777 for name in SMALL] == [0o644, 0o755, 0o644]


@pytest.mark.usefixtures("nothing_held")
@pytest.mark.parametrize("renamed", [False, True], ids=["another content", "another mode"])
def test_a_bundle_of_which_anything_differs_is_fetched(tmp_path: Path, renamed: bool) -> None:
    newer = SMALL | {"config.json": b"[]" * 2000}
    if renamed:  # the same content is a program now
        newer = {"config+x" if name == "config.json" else name: data for name, data in SMALL.items()}
    memory = MemoryRegistry()
    published(memory, "3", SMALL)
    published(memory, "4", newer)
    with FaultServer(memory) as server:
        get(server, tmp_path)
        second = get(server, tmp_path, "4")
        assert whole_reads(server, newer, "4", -1) == 1
    assert {name: (second.folder / name).read_bytes() for name in newer} == newer
    modes = {name: (second.folder / name).stat().st_mode & 0o777 for name in newer}
    assert modes == {name: 0o755 if name.endswith("+x") else 0o644 for name in newer}


@pytest.mark.usefixtures("nothing_held")
def test_each_bundle_is_fetched_or_not_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlimg.pack.BUNDLE_BYTES", 25_000)
    older = {f"{number}.bin": bytes([number]) * 10_000 for number in range(6)}
    newer = older | {"2.bin": b"other" * 2000}
    memory = MemoryRegistry()
    published(memory, "3", older)
    published(memory, "4", newer)
    assert len(payload(newer).layers) == 3
    with FaultServer(memory) as server:
        get(server, tmp_path)
        server.requests.clear()
        second = get(server, tmp_path, "4")
        assert [whole_reads(server, newer, "4", which) for which in range(3)] == [0, 1, 0]
    assert {name: (second.folder / name).read_bytes() for name in newer} == newer


@pytest.mark.usefixtures("nothing_held")
def test_small_files_that_a_killed_fetch_had_put_together_do_not_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"base.bin": WEIGHTS, **SMALL}
    memory = MemoryRegistry()
    published(memory, "3", files)

    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with FaultServer(memory) as server:
        with monkeypatch.context() as patched:
            patched.setattr("mlimg.runtime.fetch.install", killed)
            with pytest.raises(KilledError):
                get(server, tmp_path)
        assert whole_reads(server, files, "3", -1) == 1
        server.requests.clear()
        model = get(server, tmp_path)
        assert whole_reads(server, files, "3", -1) == 0
    assert model.fetched_bytes == 0
    assert {name: (model.folder / name).read_bytes() for name in files} == files


@pytest.mark.usefixtures("nothing_held")
def test_g6_a_manifest_that_no_layer_proves_is_not_believed_though_every_file_is_here(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    published(memory, "3", SMALL)
    published(memory, "4", SMALL)

    def another(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        return Answer(answer.status, answer.headers, answer.body.replace(b'"sklearn"', b'"evillib"'))

    with FaultServer(memory) as server:
        first = get(server, tmp_path)
        lie = Fault("GET", str(payload(SMALL, version="4").layers[-1].digest), change=another)
        server.faults = [lie]
        with pytest.raises(IntegrityError, match="changed its manifest"):
            get(server, tmp_path, "4")
        assert lie.fired == 1
        assert version_folders(tmp_path) == [first.folder]
        assert get(server, tmp_path, "4").manifest.framework == "sklearn"  # the twin: nothing wrong


def test_g6_of_an_altered_version_only_the_altered_file_is_fetched_again(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    published(memory, "3", FILES)
    with FaultServer(memory) as server:
        first = get(server, tmp_path)
        head = first.folder / "head.bin"
        head.write_bytes(b"?" + FILES["head.bin"][1:])
        again = get(server, tmp_path)
    assert not again.cache_hit
    assert len(FILES["head.bin"]) <= again.fetched_bytes < len(WEIGHTS)
    assert {name: (again.folder / name).read_bytes() for name in FILES} == FILES


def test_files_of_one_content_come_once(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    files = {"a.bin": WEIGHTS, "b.bin": WEIGHTS, "c/d.bin": WEIGHTS}
    published(memory, "3", files)
    with FaultServer(memory) as server:
        model = get(server, tmp_path)
    assert model.fetched_bytes < len(WEIGHTS) + 10_000
    assert {name: (model.folder / name).read_bytes() for name in files} == files


def test_what_another_folder_has_is_taken_from_there(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    published(memory, "3", FILES)
    with FaultServer(memory) as server:
        get(server, tmp_path / "cache")
        model = get(server, tmp_path / "own", share_from=[tmp_path / "cache"])
    assert model.folder.is_relative_to(tmp_path / "own")
    assert model.fetched_bytes < 10_000


@pytest.mark.parametrize("executable", [False, True])
@pytest.mark.parametrize("is_so", [False, True])
def test_a_file_is_taken_over_with_its_mode(tmp_path: Path, is_so: bool, executable: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "into" / "target"
    source.write_bytes(WEIGHTS)
    source.chmod(0o755 if is_so else 0o644)
    file = ModelFile(PurePosixPath("x"), len(WEIGHTS), Digest.of(WEIGHTS))
    assert take_over(source, target, file, executable=executable, stop=threading.Event())
    assert target.read_bytes() == WEIGHTS
    assert bool(target.stat().st_mode & 0o111) == executable
    assert bool(source.stat().st_mode & 0o111) == is_so


@pytest.mark.parametrize("what", ["altered", "shorter", "missing", "a link", "a pipe"])
def test_g6_what_is_not_the_file_is_not_taken_over(tmp_path: Path, what: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    good = tmp_path / "good"
    good.write_bytes(WEIGHTS)
    if what == "altered":
        source.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    elif what == "shorter":
        source.write_bytes(WEIGHTS[:-1])
    elif what == "a link":
        source.symlink_to(good)
    elif what == "a pipe":
        os.mkfifo(source)
    file = ModelFile(PurePosixPath("x"), len(WEIGHTS), Digest.of(WEIGHTS))
    assert not take_over(source, target, file, executable=False, stop=threading.Event())
    assert not target.exists()
    assert take_over(good, target, file, executable=False, stop=threading.Event())


def test_copies_are_told_by_manifests_alone(tmp_path: Path) -> None:
    folder = version(tmp_path, 1, FILES, used=1)
    version(tmp_path, 2, FILES, used=1).joinpath("mlimg.manifest").write_bytes(b"broken")
    file = ModelFile(PurePosixPath("renamed.bin"), len(WEIGHTS), Digest.of(WEIGHTS))
    assert copies([tmp_path, tmp_path], [file]) == {file.sha256: [folder / "base.bin"]}


def test_versions_that_were_longest_not_used_give_way(tmp_path: Path) -> None:
    folders = [version(tmp_path, number, {"f": bytes([number]) * 1_000_000}, used=100 - number) for number in range(4)]
    evict(tmp_path, 1_000_000, 3_500_000, keep="none")
    assert [folder.exists() for folder in folders] == [True, True, False, False]
    assert not folders[3].with_name(f"{folders[3].name}.lock").exists()
    evict(tmp_path, 1_000_000, 3_500_000, keep="none")
    assert len(version_folders(tmp_path)) == 2


def test_a_version_in_use_stays_however_little_room_there_is(tmp_path: Path) -> None:
    oldest, newer, kept = (version(tmp_path, number, {"f": bytes(1000)}, used=number) for number in range(3))
    held = use(oldest)
    assert held is not None
    evict(tmp_path, 1000, 0, keep=kept.name)
    assert [folder.exists() for folder in (oldest, newer, kept)] == [True, False, True]
    os.close(held)
    evict(tmp_path, 1000, 0, keep=kept.name)
    assert not oldest.exists()


def test_a_version_stays_in_use_by_the_program_that_takes_this_ones_place(tmp_path: Path) -> None:
    folder = version(tmp_path, 1, {"f": b"x"}, used=1)
    program = (
        "import os, sys; from pathlib import Path; from mlimg.runtime.cache import use\n"
        f"assert use(Path({str(folder)!r})) is not None\n"
        "os.execvp(sys.executable, [sys.executable, '-c', 'print(1, flush=True); input()'])\n"
    )
    lock = folder.with_name(f"{folder.name}.lock")
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        assert try_lock(lock) is None
        other.communicate(b"\n")
    descriptor = try_lock(lock)
    assert descriptor is not None
    os.close(descriptor)


def test_links_to_one_file_count_once(tmp_path: Path) -> None:
    first = version(tmp_path, 1, {"f": bytes(1_000_000)}, used=1)
    second = version(tmp_path, 2, {"g": b"x"}, used=2)
    os.link(first / "f", second / "f")
    evict(tmp_path, 0, 1_500_000, keep="none")
    assert first.exists()
    assert second.exists()


def test_g7_a_version_that_was_just_installed_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fetch makes room at the worst moment: before this one has said that it uses what it installed."""
    memory, gave_way = MemoryRegistry(), version(tmp_path, 1, {"f": b"x"}, used=1)
    published(memory, "3", FILES)

    def install(*arguments: Any) -> None:
        version_folder.install(*arguments)
        evict(tmp_path, 0, 0, keep="none")

    monkeypatch.setattr("mlimg.runtime.fetch.install", install)
    with FaultServer(memory) as server:
        model = get(server, tmp_path)
    assert (model.folder / "base.bin").read_bytes() == WEIGHTS
    assert model.held is not None
    assert not gave_way.exists()


def test_g7_a_version_that_is_being_removed_is_fetched_again(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    published(memory, "3", FILES)
    with FaultServer(memory) as server, ThreadPoolExecutor(1) as thread:
        first = get(server, tmp_path)
        assert first.held is not None
        os.close(first.held)
        removing = try_lock(first.folder.with_name(f"{first.folder.name}.lock"))
        assert removing is not None
        again = thread.submit(get, server, tmp_path)
        time.sleep(0.3)  # it finds all files, as they go only now
        shutil.rmtree(first.folder)
        os.close(removing)
        model = again.result(20)
        assert not model.cache_hit
        assert model.held is not None
        assert (model.folder / "base.bin").read_bytes() == WEIGHTS
        assert get(server, tmp_path).cache_hit  # the twin: nobody removes it


def test_a_cache_with_a_limit_keeps_what_was_used_last(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    for number in range(3):
        published(memory, str(number), {"base.bin": random.Random(number).randbytes(200_000)})
    with FaultServer(memory) as server:
        models = [get(server, tmp_path, "0"), get(server, tmp_path, "1")]
        for model in models:
            assert model.held is not None
            os.close(model.held)
        again = get(server, tmp_path, "0")
        assert again.cache_hit
        get(server, tmp_path, "2", limit_bytes=450_000)
    assert models[0].folder.exists()
    assert not list(models[1].folder.parent.glob(f"{models[1].folder.name}*"))  # nor its lock, nor what proved it
