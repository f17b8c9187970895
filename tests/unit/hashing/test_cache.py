import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pytest

from mlimg.hashing.cache import CACHE_NAME, HashCache
from mlimg.pack import OWN_LAYER_BYTES, PackedModel, pack
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ModelError
from mlimg.sources import Inventory, ModelSource
from mlimg.sources.local import open_source
from tests.support.models import write_tree

ONE, OTHER = Digest.of(b"one"), Digest.of(b"other")


def packed(source: ModelSource, hashes: HashCache) -> tuple[PackedModel, int]:
    """A packed model, and how many files were opened for it."""
    opened: list[object] = []
    real = source.open

    class Counted:
        def inventory(self) -> Inventory:
            return source.inventory()

        def open(self, path: PurePosixPath) -> BinaryIO:
            opened.append(path)
            return real(path)

    words = {"name": "m", "version": "1", "framework": "f", "format": "f"}
    return pack(Counted(), hashes=hashes, **words), len(opened)


def test_what_was_learned_is_known_to_the_next_process(tmp_path: Path) -> None:
    cache = HashCache(tmp_path / ".mlimg")
    cache.learn("file:1", ONE)
    cache.learn(None, OTHER)
    assert cache.find("file:1") == ONE
    assert cache.find(None) is None
    assert HashCache(tmp_path / ".mlimg").find("file:1") is None, "not saved yet"
    cache.save()
    assert HashCache(tmp_path / ".mlimg").find("file:1") == ONE
    assert HashCache(tmp_path / ".mlimg").find("file:2") is None
    assert sorted(path.name for path in (tmp_path / ".mlimg").iterdir()) == [".gitignore", CACHE_NAME]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = HashCache()
    cache.learn("key", ONE)
    cache.save()
    assert cache.find("key") == ONE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: b"",
        lambda data: b"\0" * len(data),
        lambda data: data.replace(b'"schemaVersion": 1', b'"schemaVersion": 2'),
        lambda data: json.dumps({"schemaVersion": 1, "sha256": [1]}).encode(),
        lambda data: b"[" * 100_000,
        lambda data: data.replace(ONE.hex.encode(), b"/etc/passwd"),
        lambda data: data.replace(f'"{ONE.hex}"'.encode(), b"7"),
        lambda data: data + b" " * 33 * 1024**2,
    ],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = HashCache(tmp_path)
    cache.learn("key", ONE)
    cache.save()
    path = tmp_path / CACHE_NAME
    path.write_bytes(damage(path.read_bytes()))
    again = HashCache(tmp_path)
    assert again.find("key") is None
    again.learn("key", ONE)
    again.save()
    assert HashCache(tmp_path).find("key") == ONE


def test_it_is_bounded_and_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlimg.hashing.cache.MAX_ENTRIES", 3)
    for name in "abcde":
        cache = HashCache(tmp_path)
        cache.learn(name, ONE)
        cache.save()
    known = HashCache(tmp_path)
    assert [name for name in "abcde" if known.find(name)] == ["c", "d", "e"]


def test_runs_at_the_same_moment_harm_nobody(tmp_path: Path) -> None:
    """I8"""

    def work(number: int) -> None:
        for turn in range(20):
            cache = HashCache(tmp_path)
            cache.learn(f"{number}:{turn}", ONE)
            assert cache.find("shared") in {None, OTHER}
            cache.learn("shared", OTHER)
            cache.save()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = HashCache(tmp_path)
    assert known.find("shared") == OTHER
    assert sum(known.find(f"{number}:19") == ONE for number in range(8)) >= 1
    assert {path.name for path in tmp_path.iterdir()} <= {CACHE_NAME, ".gitignore"}


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = HashCache(tmp_path / "file" / ".mlimg")
    cache.learn("key", ONE)
    cache.save()
    assert cache.find("key") == ONE


TREE = {"big.bin": bytes(OWN_LAYER_BYTES), "small.json": b"{}", "deep/other": b"x"}


def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that are older than the clock's grain: the clock of the listing has gone on."""
    write_tree(folder, TREE)
    real = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: real() + 60_000_000_000)
    return folder


def test_an_unchanged_model_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model(tmp_path / "model", monkeypatch)
    cache = HashCache(tmp_path / "cache")
    first, opened = packed(open_source(source), cache)
    assert opened == 5, "the manifest's layer twice: its digest is known when its files are"
    cache.save()
    again, opened = packed(open_source(source), HashCache(tmp_path / "cache"))
    assert opened == 0
    assert again.manifest_bytes == first.manifest_bytes
    assert [layer.digest for layer in again.layers] == [layer.digest for layer in first.layers]


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model(tmp_path / "model", monkeypatch)
    cache = HashCache(tmp_path / "cache")
    first, _ = packed(open_source(source), cache)
    (source / "small.json").write_bytes(b"[]")
    second, opened = packed(open_source(source), cache)
    assert opened == 4, "the layer of small files, and once more with the manifest"
    assert second.layers[0].digest == first.layers[0].digest
    assert second.layers[1].digest != first.layers[1].digest
    assert second.layers[1].digest == Digest.of(b"".join(map(bytes, second.layers[1].chunks())))


def test_a_file_of_this_moment_is_hashed_again(tmp_path: Path) -> None:
    """It may change once more within the clock's grain and keep its times."""
    path = write_tree(tmp_path, {"model.bin": b"x"}) / "model.bin"
    written = path.stat().st_ctime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time_ns", lambda: written)
        cache = HashCache()
        packed(open_source(tmp_path), cache)
        _, opened = packed(open_source(tmp_path), cache)
        assert opened
        patch.setattr("time.time_ns", lambda: written + 10_000_000_000)
        packed(open_source(tmp_path), cache)
        _, opened = packed(open_source(tmp_path), cache)
        assert not opened


def test_what_the_cache_says_wrongly_is_found_when_bytes_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B3: the cache saves work and proves nothing."""
    source = open_source(model(tmp_path / "model", monkeypatch))
    cache = HashCache()
    packed(source, cache)
    [big] = [file for file in source.inventory() if str(file.path) == "big.bin"]
    cache.learn(f"file:{big.fingerprint}", OTHER)
    with pytest.raises(ModelError, match="not the file that was hashed"):
        packed(source, cache)
    honest, _ = packed(source, cache)  # what was found wrong is forgotten
    assert list(honest.layers[0].chunks())

    cache.learn(f"file:{big.fingerprint}", OTHER)
    cache.learn(replace(honest.layers[0], sha256s={big.path: OTHER}).content_key, ONE)
    lied, _ = packed(source, cache)
    assert lied.layers[0].digest == ONE
    with pytest.raises(ModelError, match="not the file that was hashed"):
        list(lied.layers[0].chunks())
