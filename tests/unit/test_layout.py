"""OCI layouts. Bars: F13 (a full disk), I8 (two writers), C-rows: nothing half in it."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimg.layout import FULL_NAME, Layout, entry
from mlimg.layout_writer import LayoutWriter, writing
from mlimg.runtime.descriptor import OCI_LAYER, OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import BusyError, IntegrityError, LocalIOError, UsageError
from mlimg.runtime.reference import ImageReference

DATA = b"a layer " * 1000
MANIFEST = b'{"schemaVersion":2}'
NAME = ImageReference.parse("registry.example/team/digits:3")


def described(data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type, Digest.of(data), len(data))


def fill(writer: LayoutWriter, manifest: bytes = MANIFEST, name: ImageReference = NAME) -> None:
    writer.add(described(DATA), [DATA])
    writer.add_document(manifest)
    writer.list_entries([entry(name, described(manifest, OCI_MANIFEST))])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_layout_holds_what_the_specification_says_and_nothing_else(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    with writing(layout) as writer:
        fill(writer)
    blobs = {f"blobs/sha256/{Digest.of(data).hex}" for data in (DATA, MANIFEST)}
    assert files(tmp_path / "out") == {"oci-layout", "index.json", *blobs}
    assert not (tmp_path / "out" / ".mlimg-parts").exists()
    assert json.loads((tmp_path / "out" / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (listed,) = Layout.open(tmp_path / "out").entries()
    assert (listed.name, listed.descriptor.digest) == (str(NAME), Digest.of(MANIFEST))
    assert listed.descriptor.annotations[FULL_NAME] == "registry.example/team/digits:3"
    assert b"".join(layout.blob(described(DATA)).chunks()) == DATA
    assert layout.document(listed.descriptor) == MANIFEST


def test_a_layout_is_added_to_and_a_name_moves(tmp_path: Path) -> None:
    layout, other = Layout(tmp_path), ImageReference.parse("registry.example/team/digits:4")
    for manifest, name in ((MANIFEST, NAME), (b"{}", other), (b"[]", NAME)):
        with writing(layout) as writer:
            fill(writer, manifest, name)
    assert {listed.name: listed.descriptor.digest for listed in layout.entries()} == {
        str(other): Digest.of(b"{}"),
        str(NAME): Digest.of(b"[]"),
    }


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    with writing(Layout(tmp_path)) as writer:
        assert writer.add(described(DATA), [DATA]) == len(DATA)
        counted: list[int] = []
        assert writer.add(described(DATA), iter(()), on_bytes=counted.append) == 0
    assert counted == [len(DATA)]


@pytest.mark.parametrize("sent", [DATA[:-1], DATA + b"x", DATA[:-1] + b"x"])
def test_other_bytes_than_announced_get_no_name(tmp_path: Path, sent: bytes) -> None:
    layout = Layout(tmp_path)
    with writing(layout) as writer, pytest.raises(IntegrityError):
        writer.add(described(DATA), [sent])
    assert files(tmp_path) == {"oci-layout", "index.json"}


def test_a_run_that_ends_in_the_middle_leaves_a_layout_that_the_next_one_completes(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")

    def broken() -> Iterator[bytes]:
        yield DATA[:100]
        raise LocalIOError("the model's disk is gone")

    with pytest.raises(LocalIOError), writing(layout) as writer:
        writer.add(described(DATA), broken())
    assert layout.entries() == ()
    # What SIGKILL leaves: a part, and the lock of a process that is gone.
    (tmp_path / "out" / ".mlimg-parts").mkdir()
    (tmp_path / "out" / ".mlimg-parts" / "half").write_bytes(DATA[:10])
    (tmp_path / "out" / ".mlimg.lock").touch()
    with writing(layout) as writer:
        fill(writer)
    assert len(files(tmp_path / "out")) == 4


def test_a_blob_that_rotted_is_noticed_before_its_end(tmp_path: Path) -> None:
    layout, data = Layout(tmp_path), os.urandom(3_000_000)
    with writing(layout) as writer:
        writer.add(described(data), [data])
    blob = layout.blob(described(data))
    assert b"".join(blob.chunks()) == data
    with (tmp_path / "blobs" / "sha256" / blob.digest.hex).open("r+b") as file:
        file.write(bytes([data[0] ^ 1]))
    got: list[bytes] = []
    with pytest.raises(IntegrityError, match="not what its digest says"):
        got.extend(blob.chunks())
    assert len(b"".join(got)) < len(data)


def test_a_blob_that_is_missing_or_cut_is_not_sent(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with writing(layout) as writer:
        fill(writer)
    layout.blob(described(DATA))
    with pytest.raises(IntegrityError, match="lacks"):
        layout.blob(Descriptor(OCI_LAYER, Digest.of(DATA), len(DATA) + 1))
    with pytest.raises(IntegrityError, match="lacks"):
        layout.blob(described(b"other"))


def test_a_folder_with_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="neither empty nor"), writing(Layout(tmp_path)):
        pass
    assert files(tmp_path) == {"mine.txt"}
    for mark in (None, b"[" * 4096, b"[]"):
        if mark is not None:
            (tmp_path / "oci-layout").write_bytes(mark)
        with pytest.raises(UsageError, match="no OCI layout"):
            Layout.open(tmp_path)


def test_a_second_writer_waits_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlimg.layout_writer._LOCK_SECONDS", 0.2)
    with writing(Layout(tmp_path)), pytest.raises(BusyError), writing(Layout(tmp_path)):
        pass
    with writing(Layout(tmp_path)) as writer:
        fill(writer)


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    names = [ImageReference.parse(f"registry.example/team/digits:{number}") for number in range(6)]

    def write(name: ImageReference) -> None:
        with writing(Layout(tmp_path)) as writer:
            fill(writer, str(name).encode(), name)

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {listed.name for listed in Layout(tmp_path).entries()} == set(map(str, names))
    assert len(files(tmp_path)) == 2 + 1 + len(names)


def test_a_layout_that_another_run_begins_meanwhile_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_of = Path.iterdir

    def begun_meanwhile(folder: Path) -> Iterator[Path]:
        monkeypatch.setattr(Path, "iterdir", names_of)
        with writing(Layout(tmp_path)) as other:
            fill(other)
        return names_of(folder)

    monkeypatch.setattr(Path, "iterdir", begun_meanwhile)
    with writing(Layout(tmp_path)) as writer:
        fill(writer, b"mine")
    assert len(files(tmp_path)) == 2 + 1 + 2


def test_room_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    with writing(Layout(tmp_path)) as writer:
        writer.check_room([described(DATA)])
        huge = Descriptor(OCI_LAYER, Digest.of(b"huge"), 2**60)
        with pytest.raises(LocalIOError, match=rf"needs {2**60 + len(DATA):,} bytes more"):
            writer.check_room([described(DATA), huge, huge])
        writer.add(described(DATA), [DATA])
        with pytest.raises(LocalIOError, match=rf"needs {2**60:,} bytes more"):
            writer.check_room([described(DATA), huge])
