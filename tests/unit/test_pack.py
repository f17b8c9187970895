import hashlib
import io
import os
import random
import subprocess
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlimg.hashing import sha256
from mlimg.model_layer import Learned, ModelLayer
from mlimg.pack import BUNDLE_BYTES, MAX_MODEL_LAYERS, OWN_LAYER_BYTES, PackedModel, lay_out, pack
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import LimitError, ModelError
from mlimg.runtime.manifest import ModelManifest
from mlimg.sources import Inventory, ModelSource
from mlimg.sources.local import open_source
from tests.support.models import DictSource, SizesSource, peak_kib, write_tree
from tests.support.rounds import rounds

MIB = 1024**2
TREE = {
    "model.joblib": os.urandom(3 * MIB + 7),
    "config.json": b"{}",
    "empty": b"",
    "bin/run+x": b"#!/bin/sh\n",
    "tökens/vocab 1.txt": b"a\nb\n",
    "deep/" * 30 + "a-name-that-needs-an-extended-header": b"x",
}


def pack_dict(files: dict[str, bytes], **changes: str) -> PackedModel:
    return pack_source(DictSource(files), **changes)


def pack_source(source: ModelSource, **changes: str) -> PackedModel:
    words = {"name": "digits", "version": "3", "framework": "sklearn", "format": "joblib", **changes}
    return pack(source, **words)


def content(layer: ModelLayer) -> bytes:
    return b"".join(bytes(chunk) for chunk in layer.chunks())


def extract(packed: PackedModel, root: Path) -> Path:
    """Unpack as a person would, by GNU tar, which says what it minds."""
    root.mkdir()
    for number, layer in enumerate(packed.layers):
        tar = root.with_name(f"{number}.tar")
        tar.write_bytes(content(layer))
        for command in (["tar", "tvf", str(tar)], ["tar", "xpf", str(tar), "-C", str(root)]):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert not done.stderr
    return root


def test_gnu_tar_makes_exactly_the_tree_with_its_modes(tmp_path: Path) -> None:
    packed = pack_source(open_source(write_tree(tmp_path / "m", TREE)))
    root = extract(packed, tmp_path / "out")
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    assert files.pop("models/mlimg.manifest").read_bytes() == packed.manifest_bytes
    assert {name: path.read_bytes() for name, path in files.items()} == {f"models/{k}": v for k, v in TREE.items()}
    modes = {name: path.stat().st_mode & 0o7777 for name, path in files.items()}
    assert modes == {f"models/{name}": 0o755 if name.endswith("+x") else 0o644 for name in TREE}
    folders = [path for path in (root / "models").rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o7777 for path in folders} == {0o755}


def test_python_reads_the_same_entries_with_nothing_of_this_machine_in_them() -> None:
    packed = pack_dict(TREE)
    (layer,) = packed.layers
    with tarfile.open(fileobj=io.BytesIO(content(layer))) as tar:
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}
    names = [member.name for member in members]
    assert names[0] == "models/mlimg.manifest"
    files = [member.name for member in members[1:] if member.isfile()]
    assert files == sorted(f"models/{name}" for name in TREE)
    assert "models" not in names
    assert {m.name for m in members if m.isdir()} == {
        f"models/{parent}" for name in TREE for parent in PurePosixPath(name).parents if str(parent) != "."
    }
    for member in members:  # every folder stands before what it holds
        parents = {str(parent) for parent in PurePosixPath(member.name).parents} - {".", "models"}
        assert parents <= set(names[: names.index(member.name)])


def test_the_same_tree_gives_the_same_digests_whoever_wrote_it_and_when(tmp_path: Path) -> None:
    """B17"""
    packed = [pack_source(open_source(write_tree(tmp_path / str(seed), TREE, seed))) for seed in range(6)]
    assert len({tuple(layer.digest for layer in model.layers) for model in packed}) == 1
    assert len({model.manifest_digest for model in packed}) == 1


def test_one_byte_or_one_bit_of_mode_gives_another_digest(tmp_path: Path) -> None:
    """B17, the twin"""
    digests = {pack_dict({"a": b"x", "b": b"y"}).layers[-1].digest}
    digests.add(pack_dict({"a": b"x", "b": b"z"}).layers[-1].digest)
    digests.add(pack_dict({"a": b"x", "c": b"y"}).layers[-1].digest)
    write_tree(tmp_path, {"a": b"x", "b": b"y"})
    (tmp_path / "b").chmod(0o744)
    digests.add(pack_source(open_source(tmp_path)).layers[-1].digest)
    assert len(digests) == 4


def test_layers_are_the_same_bytes_with_every_version_of_python_and_mlimg() -> None:
    """These digests are published: they never change."""
    names = ("model.bin", "ä/é", "x" * 120, "run+x")
    packed = pack_dict({name: name.encode() for name in names})
    assert [layer.digest.text for layer in packed.layers if layer.digest] == [
        "sha256:83d4d0a10e91e988be21d02fa57c30062429f8544121b93989ba71da580001c0",
    ]
    assert packed.manifest_digest.text == "sha256:bcb33ab0079b5528208f87addafa90aa67e7d026062f7d7c71d4c3441f890f00"


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    packed = pack_source(open_source(write_tree(tmp_path, TREE)))
    for layer in packed.layers:
        data = content(layer)
        assert (layer.digest, layer.size_bytes) == (Digest.of(data), len(data))
    assert {str(file.path): file.sha256.hex for file in packed.manifest.files} == {
        name: hashlib.sha256(data).hexdigest() for name, data in TREE.items()
    }
    assert packed.size_bytes == sum(layer.size_bytes for layer in packed.layers)
    assert ModelManifest.parse(packed.manifest_bytes) == packed.manifest


def test_large_files_get_a_layer_each_and_the_manifest_s_layer_comes_last() -> None:
    sizes = {"b.bin": OWN_LAYER_BYTES, "a.bin": OWN_LAYER_BYTES + 1, "z.bin": OWN_LAYER_BYTES - 1, "c.json": 10}
    layers = lay_out(SizesSource(sizes))
    assert [[str(path) for path in layer.paths] for layer in layers] == [["a.bin"], ["b.bin"], ["c.json", "z.bin"]]


def test_a_new_version_moves_the_manifest_s_layer_and_no_other(tmp_path: Path) -> None:
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(OWN_LAYER_BYTES)
    (tmp_path / "config.json").write_bytes(b"{}")
    old, new = (pack_source(open_source(tmp_path), version=version) for version in ("3", "4"))
    assert [layer.paths for layer in old.layers] == [(PurePosixPath("weights.bin"),), (PurePosixPath("config.json"),)]
    assert old.layers[0].digest == new.layers[0].digest
    assert old.layers[1].digest != new.layers[1].digest
    assert old.manifest.digest == new.manifest.digest


def test_a_model_of_large_files_alone_has_its_manifest_in_a_layer_of_its_own() -> None:
    layers = lay_out(SizesSource({"a.bin": OWN_LAYER_BYTES}))
    assert [layer.paths for layer in layers] == [(PurePosixPath("a.bin"),), ()]


SIZES = st.one_of(
    st.integers(0, 300 * MIB),
    st.sampled_from([0, 1, OWN_LAYER_BYTES - 1, OWN_LAYER_BYTES, BUNDLE_BYTES, 9 * 1024 * MIB]),
)


@settings(deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=400))
def test_every_file_is_in_one_layer_and_layers_are_few(sizes: list[int]) -> None:
    source = SizesSource({f"{number * 7919 % 1000:03d}-{number}": size for number, size in enumerate(sizes)})
    layers = lay_out(source)
    assert len(layers) <= MAX_MODEL_LAYERS
    assert sorted(file.path for layer in layers for file in layer.files) == [file.path for file in source.inventory()]
    assert all(layer.files for layer in layers[:-1])
    assert sum(file.size_bytes for file in layers[-1].files) <= BUNDLE_BYTES
    for layer in layers:
        assert list(layer.paths) == sorted(layer.paths, key=str)
        if any(file.size_bytes >= OWN_LAYER_BYTES for file in layer.files) and len(layers) < MAX_MODEL_LAYERS // 2:
            assert len(layer.files) == 1


@settings(deadline=None)  # what is slow on a busy machine is no failure
@given(st.integers(96, 1000))
def test_many_large_files_share_layers_evenly(count: int) -> None:
    size = OWN_LAYER_BYTES
    layers = lay_out(SizesSource({f"shard-{number:05d}": size for number in range(count)} | {"config.json": 9}))
    shared, last = layers[:-1], layers[-1]
    assert len(shared) == MAX_MODEL_LAYERS - 1
    assert [str(path) for path in last.paths] == ["config.json"]
    in_order = [path for layer in shared for path in layer.paths]
    assert in_order == sorted(in_order)
    counts = [len(layer.files) for layer in shared]
    assert max(counts) - min(counts) <= 1


def test_95_large_files_still_have_a_layer_each() -> None:
    layers = lay_out(SizesSource({f"{number:03d}": OWN_LAYER_BYTES for number in range(95)}))
    assert [len(layer.files) for layer in layers] == [1] * 95 + [0]


def test_a_file_over_8_gib_has_its_size_in_an_extended_header() -> None:
    size = 9 * 1024**3
    (layer, _) = lay_out(SizesSource({"huge.bin": size}))
    with pytest.raises(AssertionError, match="opened"):
        list(layer.chunks())  # nothing is read before the header is out
    header = bytes(next(layer.chunks()))
    member = tarfile.TarFile(fileobj=io.BytesIO(header)).next()
    assert member is not None
    assert (member.name, member.size) == ("models/huge.bin", size)
    assert layer.size_bytes == len(header) + size + 1024


def test_a_prefix_puts_several_models_in_one_server() -> None:
    source = DictSource({"sub/model.bin": b"x"})
    packed = pack(source, name="d", version="1", framework="f", format="f", prefix=PurePosixPath("models/digits"))
    with tarfile.open(fileobj=io.BytesIO(content(packed.layers[0]))) as tar:
        assert tar.getnames() == [
            "models/digits",
            "models/digits/mlimg.manifest",
            "models/digits/sub",
            "models/digits/sub/model.bin",
        ]


@pytest.mark.parametrize("together", [True, False])
def test_a_layer_that_is_not_hashed_yet_streams_the_same_bytes_and_learns_on_the_way(
    monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Whatever makes the digests: hashlib, or the processor both at once."""
    if together and not sha256.AVAILABLE:
        pytest.skip("hashlib alone makes digests here")
    monkeypatch.setattr(sha256, "AVAILABLE", together)
    large = random.Random(1).randbytes(3 * MIB + 1)
    for fresh in lay_out(DictSource({**TREE, "weights": large * (OWN_LAYER_BYTES // len(large) + 1)})):
        assert fresh.digest is None
        learned = Learned()
        tar = b"".join(bytes(chunk) for chunk in fresh.stream(learned))
        assert learned.digest == Digest.of(tar)
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            files = {member.name: opened.extractfile(member) for member in opened if member.isfile()}
        assert {f"models/{path}": digest for path, digest in learned.sha256s.items()} == {
            name: Digest.of(file.read()) for name, file in files.items() if file
        }
        again = Learned()
        for _ in fresh.stream(again, whole=False):
            pass
        assert again == Learned(learned.sha256s)


def test_progress_counts_the_files_bytes_once(tmp_path: Path) -> None:
    counted: list[int] = []
    files = {**TREE, "w1": bytes(OWN_LAYER_BYTES), "w2": bytes(OWN_LAYER_BYTES + 1)}
    pack(DictSource(files), name="d", version="1", framework="f", format="f", on_bytes=counted.append)
    assert sum(counted) == sum(map(len, files.values()))


def test_a_list_of_files_over_its_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"model.bin": b"x", "other": b"y"}
    size = len(pack_dict(files).manifest_bytes)
    monkeypatch.setattr("mlimg.pack.MAX_MANIFEST_BYTES", size)
    assert pack_dict(files).manifest_bytes
    with pytest.raises(LimitError, match="list of the model's files"):
        pack_dict({**files, "z": b""})


class Sending:
    """Takes a layer's chunks as a sender does; something happens when a megabyte has gone."""

    def __init__(self, layer: ModelLayer, fault: Callable[[], object] = lambda: None) -> None:
        self.layer = layer
        self.fault = fault
        self.fired = False
        self.sent_bytes = 0

    def __call__(self) -> None:
        for chunk in self.layer.chunks():
            self.sent_bytes += len(chunk)
            if self.sent_bytes > READ_SIZE_BYTES and not self.fired:
                self.fired = True
                self.fault()


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


Change = Callable[[Path], object]
ENDURING: dict[str, Change] = {
    "grows": _append,
    "shrinks": lambda path: os.truncate(path, READ_SIZE_BYTES),
    "is rewritten": _rewrite,
}
BETWEEN: dict[str, Change] = {
    **ENDURING,
    "vanishes": Path.unlink,
    "is replaced": _replace,
}


@pytest.mark.parametrize("change", ENDURING.values(), ids=ENDURING)
@pytest.mark.parametrize("size", [3 * MIB, OWN_LAYER_BYTES])
def test_a_file_that_changes_while_it_is_hashed_is_refused(tmp_path: Path, change: Change, size: int) -> None:
    """B2"""
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(size))
    os.utime(path, (0, 0))
    fired = threading.Event()

    def writer(_size_bytes: int) -> None:
        if not fired.is_set():
            change(path)
            fired.set()

    with pytest.raises(ModelError, match=r"model\.bin` changed while it was read"):
        pack(open_source(tmp_path), name="d", version="1", framework="f", format="f", on_bytes=writer)
    assert fired.is_set()


@pytest.mark.parametrize("change", BETWEEN.values(), ids=BETWEEN)
def test_a_file_that_changes_between_hashing_and_sending_is_not_sent(tmp_path: Path, change: Change) -> None:
    """B2, C8"""
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(3 * MIB))
    os.utime(path, (0, 0))
    (layer,) = pack_source(open_source(tmp_path)).layers
    change(path)
    send = Sending(layer)
    with pytest.raises(ModelError, match=r"model\.bin` changed while it was read"):
        send()
    assert send.sent_bytes < layer.size_bytes


@pytest.mark.parametrize("change", ENDURING.values(), ids=ENDURING)
def test_a_file_that_changes_while_it_is_sent_never_arrives_whole(tmp_path: Path, change: Change) -> None:
    """B2, C8"""
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(3 * MIB))
    os.utime(path, (0, 0))
    (layer,) = pack_source(open_source(tmp_path)).layers
    send = Sending(layer, lambda: change(path))
    with pytest.raises(ModelError, match=r"model\.bin` changed while it was read"):
        send()
    assert send.fired
    assert send.sent_bytes < layer.size_bytes


def test_content_swapped_behind_an_unchanged_time_is_found(tmp_path: Path) -> None:
    """B3"""
    path = tmp_path / "model.bin"
    path.write_bytes(b"a" * 3 * MIB)
    os.utime(path, ns=(0, 0))
    (layer,) = pack_source(open_source(tmp_path)).layers
    assert Digest.of(content(layer)) == layer.digest
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"b")
    os.utime(path, ns=(0, 0))
    send = Sending(layer)
    with pytest.raises(ModelError, match="changed while it was read"):
        send()
    assert send.sent_bytes < layer.size_bytes


def test_content_that_no_time_betrays_is_found_by_its_hash(tmp_path: Path) -> None:
    """B3, on a file system that keeps no times"""
    (tmp_path / "model.bin").write_bytes(b"a" * 3 * MIB)
    (layer,) = pack_source(open_source(tmp_path)).layers
    send = Sending(replace(layer, sha256s=dict.fromkeys(layer.sha256s, Digest.of(b"what was hashed"))))
    with pytest.raises(ModelError, match="not the file that was hashed"):
        send()
    assert send.sent_bytes < layer.size_bytes


def test_a_writer_that_never_stops_gets_no_mixed_layer_through(tmp_path: Path) -> None:
    """B3: what arrives whole is what was hashed, in every one of the trials."""
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(2 * MIB))
    trials = rounds(50)
    stop = threading.Event()

    def flip() -> None:
        byte = 0
        while not stop.is_set():
            byte ^= 1
            with path.open("r+b", buffering=0) as file:
                file.seek(MIB)
                file.write(bytes([byte]))
            os.utime(path, ns=(0, 0))

    writer = threading.Thread(target=flip)
    writer.start()
    arrived = refused = 0
    try:
        for _ in range(trials):
            try:
                (layer,) = pack_source(open_source(tmp_path)).layers
                assert Digest.of(content(layer)) == layer.digest
                arrived += 1
            except ModelError:
                refused += 1
    finally:
        stop.set()
        writer.join()
    assert arrived + refused == trials
    assert refused


class FailingSource(DictSource):
    """One file fails at once, the others never end by themselves."""

    def inventory(self) -> Inventory:
        listing = super().inventory()
        return Inventory(tuple(replace(file, size_bytes=2**50) for file in listing))

    def open(self, path: PurePosixPath) -> BinaryIO:
        if str(path) == "bad":
            raise ModelError("bad file")
        return Endless()


class Endless(io.BytesIO):
    def readinto(self, buffer: object) -> int:
        return len(memoryview(buffer))


def test_one_failing_file_stops_the_hashing_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with pytest.raises(ModelError, match="bad file"):
        pack_source(FailingSource({"bad": b"", "good": b"", "other": b""}))


def test_a_large_model_needs_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(512 * MIB)
    program = (
        "import sys; from pathlib import Path\n"
        "from mlimg.pack import pack; from mlimg.sources.local import open_source\n"
        "model = pack(open_source(Path(sys.argv[1])), name='m', version='1', framework='f', format='f')\n"
        "assert sum(len(chunk) for layer in model.layers for chunk in layer.chunks()) == model.size_bytes\n"
    )
    assert peak_kib(program, str(tmp_path)) < 60 * 1024


def test_the_manifest_tells_where_a_remote_model_was_taken_from() -> None:
    @dataclass(frozen=True)
    class Elsewhere(DictSource):
        def inventory(self) -> Inventory:
            return replace(super().inventory(), origin={"uri": "hf://organisation/digits", "revision": "abc"})

    packed = pack(Elsewhere({"a.bin": b"a"}), name="digits", version="3", framework="custom", format="custom")
    assert packed.manifest.source == {"uri": "hf://organisation/digits", "revision": "abc"}
    local = pack(DictSource({"a.bin": b"a"}), name="digits", version="3", framework="custom", format="custom")
    assert local.manifest.source is None
    assert b'"source"' not in local.manifest_bytes
