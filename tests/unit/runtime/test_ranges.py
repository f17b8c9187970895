"""Files that come in ranges. Bars: E5, E19, E25, G2, G3, G15."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, LocalIOError, RemoteTemporaryError, Stopped
from mlimg.runtime.manifest import ModelFile
from mlimg.runtime.origin import RangesIgnoredError
from mlimg.runtime.part_file import PartFile
from mlimg.runtime.ranges import Limits, Transfer

BLOCK = 1000
DATA = random.Random(5).randbytes(40 * BLOCK + 17)
QUICK = Limits(connections=4, patience_seconds=0, backoff_seconds=0.01)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kilobytes do for megabytes."""
    monkeypatch.setattr("mlimg.runtime.part_file.BLOCK_BYTES", BLOCK)
    monkeypatch.setattr("mlimg.runtime.ranges.RANGE_BYTES", 4 * BLOCK)


@dataclass
class Remote:
    """A file that can be read, badly if `change` says so. `asked` is what was asked for, `given` what was given."""

    data: bytes = DATA
    name: str = "model.bin"
    executable: bool = False
    change: Callable[[int, bytes], Iterator[bytes]] = lambda _offset, data: iter([data[:700], data[700:]])
    promised: bytes | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)
    given: int = 0

    @property
    def file(self) -> ModelFile:
        promised = self.data if self.promised is None else self.promised
        return ModelFile(PurePosixPath(self.name), len(promised), Digest.of(promised))

    def read(self, offset: int, size_bytes: int) -> Iterator[bytes]:
        self.asked.append((offset, size_bytes))
        for piece in self.change(offset, self.data[offset : offset + size_bytes]):
            self.given += len(piece)
            yield piece


def bring(
    folder: Path, *remotes: Remote, limits: Limits = QUICK, stop: threading.Event | None = None
) -> list[PartFile]:
    files = [(remote, PartFile(folder, remote.file)) for remote in remotes]
    Transfer(files, [], limits=limits, on_bytes=lambda _: None, stop=stop or threading.Event()).run()
    return [part for _, part in files]


def once(fault: Callable[[bytes], Iterator[bytes]], at: int = 8 * BLOCK) -> Callable[[int, bytes], Iterator[bytes]]:
    """A change that one range of the file suffers, the first time."""
    fired: list[int] = []

    def change(offset: int, data: bytes) -> Iterator[bytes]:
        if offset <= at < offset + len(data) and not fired:
            fired.append(offset)
            return fault(data)
        return iter([data])

    return change


def cut(data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    raise RemoteTemporaryError("the connection broke")


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, len(DATA)])
def test_a_file_of_any_length_arrives_as_it_is(tmp_path: Path, size: int) -> None:
    remote = Remote(DATA[:size])
    (part,) = bring(tmp_path, remote)
    assert part.path.read_bytes() == DATA[:size]
    assert remote.given == size


def test_several_files_come_side_by_side_with_their_modes(tmp_path: Path) -> None:
    remotes = [Remote(DATA[number:], f"{number}.bin", executable=number == 3) for number in range(7)]
    parts = bring(tmp_path, *remotes)
    assert [part.path.read_bytes() for part in parts] == [remote.data for remote in remotes]
    assert [part.path.stat().st_mode & 0o777 for part in parts] == [0o644] * 3 + [0o755] + [0o644] * 3


def test_g15_all_that_is_here_is_hashed_before_the_last_bytes_come(tmp_path: Path) -> None:
    last = len(DATA) // (4 * BLOCK) * 4 * BLOCK
    hashed: list[int] = []

    def change(offset: int, data: bytes) -> Iterator[bytes]:
        until = time.monotonic() + 20
        while offset == last and part.hashed_bytes < last and time.monotonic() < until:
            time.sleep(0.005)
        hashed.append(part.hashed_bytes)
        yield data

    remote = Remote(change=change)
    part = PartFile(tmp_path, remote.file)
    one = Limits(connections=1, patience_seconds=0, backoff_seconds=0.01)
    Transfer([(remote, part)], [], limits=one, on_bytes=lambda _: None, stop=threading.Event()).run()
    assert hashed[-1] == last
    assert remote.given == len(DATA)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_files_need_few_descriptors(tmp_path: Path) -> None:
    seen: list[int] = []

    def change(_offset: int, data: bytes) -> Iterator[bytes]:
        seen.append(descriptors())
        yield data

    contents = [b"%d" % number for number in range(200)] + [b""]
    before = descriptors()
    parts = bring(tmp_path, *(Remote(data, f"{number}.bin", change=change) for number, data in enumerate(contents)))
    assert [part.path.read_bytes() for part in parts] == contents
    assert max(seen) < before + 60


def test_g3_complete_leftovers_of_many_files_are_hashed_and_not_fetched(tmp_path: Path) -> None:
    remotes = [Remote(DATA[number : number + 1500], f"{number}.bin") for number in range(40)]
    bring(tmp_path, *remotes)
    (tmp_path / remotes[20].file.sha256.hex).write_bytes(bytes(1500))
    again = [Remote(remote.data, remote.name) for remote in remotes]
    parts = bring(tmp_path, *again)
    assert [part.path.read_bytes() for part in parts] == [remote.data for remote in remotes]
    assert [number for number, remote in enumerate(again) if remote.given] == [20]


def test_e5_a_range_that_breaks_is_gone_on_with_at_that_byte(tmp_path: Path) -> None:
    remote = Remote(change=once(cut))
    (part,) = bring(tmp_path, remote, limits=Limits(4, 60, 0.01))
    assert part.path.read_bytes() == DATA
    assert remote.given == len(DATA)  # nothing came twice


def test_e25_patience_ends_when_no_byte_comes(tmp_path: Path) -> None:
    def never(_offset: int, _data: bytes) -> Iterator[bytes]:
        raise RemoteTemporaryError("silence")

    started = time.monotonic()
    with pytest.raises(RemoteTemporaryError):
        bring(tmp_path, Remote(change=never), limits=Limits(4, 0.5, 0.01))
    assert 0.5 < time.monotonic() - started < 5


@pytest.mark.parametrize("at", [0, 20 * BLOCK + 3, len(DATA) - 1])
def test_e19_a_flipped_byte_is_found_and_nothing_of_it_is_kept(tmp_path: Path, at: int) -> None:
    altered = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
    with pytest.raises(IntegrityError, match="other content"):
        bring(tmp_path, Remote(altered, promised=DATA))
    assert not list(tmp_path.iterdir())
    bring(tmp_path, Remote(DATA, promised=DATA))


def test_e19_a_range_that_is_longer_than_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="longer"):
        bring(tmp_path, Remote(change=once(lambda data: iter([data, b"x"]))))


def test_e19_a_range_that_ends_early_is_asked_for_again(tmp_path: Path) -> None:
    remote = Remote(change=once(lambda data: iter([data[:-1]])))
    (part,) = bring(tmp_path, remote, limits=Limits(4, 60, 0.01))
    assert part.path.read_bytes() == DATA


def ignores_ranges(remote: Remote) -> Callable[[int, bytes], Iterator[bytes]]:
    def change(offset: int, data: bytes) -> Iterator[bytes]:
        if len(data) < len(remote.data) and offset >= 4 * BLOCK:
            raise RangesIgnoredError("the whole file comes")
        yield data

    return change


def test_a_place_that_stops_giving_ranges_is_read_in_one_stream(tmp_path: Path) -> None:
    remote = Remote()
    remote.change = ignores_ranges(remote)
    (part,) = bring(tmp_path, remote)
    assert part.path.read_bytes() == DATA
    assert remote.asked.count((0, len(DATA))) == 1


def test_what_was_hashed_is_not_written_again_by_the_one_stream(tmp_path: Path) -> None:
    """A place that gives good ranges first and then another file under the same name changes nothing that was read."""
    remote = Remote()
    evil = bytes(len(DATA))

    def change(offset: int, data: bytes) -> Iterator[bytes]:
        if len(data) == len(DATA):
            yield DATA[: 4 * BLOCK] and evil[: 4 * BLOCK] + DATA[4 * BLOCK :]
        elif offset >= 4 * BLOCK:
            raise RangesIgnoredError("the whole file comes")
        else:
            yield data

    remote.change = change
    (part,) = bring(tmp_path, remote, limits=Limits(1, 0, 0.01))
    assert part.path.read_bytes() == DATA


def test_g3_what_a_killed_process_had_is_hashed_again_and_only_the_rest_fetched(tmp_path: Path) -> None:
    part = PartFile(tmp_path, Remote().file)
    for start in (0, 5 * BLOCK, 40 * BLOCK):  # the last one is the short one
        part.write(start, DATA[start : start + 2 * BLOCK])
    del part
    remote = Remote()
    (again,) = bring(tmp_path, remote)
    assert again.path.read_bytes() == DATA
    assert remote.given == len(DATA) - 4 * BLOCK - 17


def test_g3_a_block_that_was_not_finished_is_fetched_whole(tmp_path: Path) -> None:
    part = PartFile(tmp_path, Remote().file)
    part.write(3 * BLOCK, DATA[3 * BLOCK : 4 * BLOCK - 1])
    del part
    remote = Remote()
    bring(tmp_path, remote)
    assert remote.given == len(DATA)


def test_g3_damaged_leftovers_are_fetched_again_once(tmp_path: Path) -> None:
    part = PartFile(tmp_path, Remote().file)
    part.write(0, b"x" * (2 * BLOCK))
    del part
    remote = Remote()
    (again,) = bring(tmp_path, remote)
    assert again.path.read_bytes() == DATA
    assert remote.given == 2 * len(DATA) - 2 * BLOCK
    again.restart()
    again.write(0, b"x" * BLOCK)
    wrong = Remote(DATA[:-1] + b"?", promised=DATA)
    with pytest.raises(IntegrityError):  # what is wrong at its place is not fetched for ever
        bring(tmp_path, wrong)
    assert wrong.given == 2 * len(DATA) - BLOCK


@pytest.mark.parametrize(
    "journal",
    [
        b"",
        b"mlimg blocks 1 5 1000\n00000000\n",
        b"\xff\xfe",
        b"mlimg blocks 1 40017 1000\nffffffff\n-0000001\nzz\n0000",
    ],
)
def test_g3_a_journal_that_is_damaged_is_not_believed(tmp_path: Path, journal: bytes) -> None:
    file = Remote().file
    (tmp_path / file.sha256.hex).write_bytes(bytes(len(DATA)))
    (tmp_path / f"{file.sha256.hex}.blocks").write_bytes(journal)
    assert not PartFile(tmp_path, file).resumed


def test_g3_a_part_of_another_length_is_begun_anew(tmp_path: Path) -> None:
    part = PartFile(tmp_path, Remote().file)
    part.write(0, DATA[:BLOCK])
    assert PartFile(tmp_path, Remote().file).resumed
    os.truncate(part.path, 100)
    assert not PartFile(tmp_path, Remote().file).resumed


def test_a_connection_far_behind_the_others_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlimg.runtime.ranges._SLOW_SECONDS", 0.3)
    slow_ones: list[int] = []

    def change(offset: int, data: bytes) -> Iterator[bytes]:
        if offset == 4 * BLOCK and not slow_ones:
            slow_ones.append(offset)
            for byte in data:
                time.sleep(0.05)
                yield bytes([byte])
            return
        for start in range(0, len(data), 400):
            time.sleep(0.02)
            yield data[start : start + 400]

    remote = Remote(change=change)
    started = time.monotonic()
    (part,) = bring(tmp_path, remote)
    assert part.path.read_bytes() == DATA
    assert slow_ones == [4 * BLOCK]
    assert time.monotonic() - started < 100  # 4000 bytes, 50 ms each, would take twice as long
    assert remote.given == len(DATA)
    assert len([offset for offset, _ in remote.asked if 4 * BLOCK < offset < 8 * BLOCK]) == 1


def test_a_stop_ends_it_and_keeps_what_is_here(tmp_path: Path) -> None:
    stop = threading.Event()

    def change(offset: int, data: bytes) -> Iterator[bytes]:
        if offset >= 20 * BLOCK:
            stop.set()
            time.sleep(0.1)
        yield data

    with pytest.raises(Stopped):
        bring(tmp_path, Remote(change=change), stop=stop)
    remote = Remote()
    bring(tmp_path, remote)
    assert 0 < remote.given < len(DATA)


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(LocalIOError, match="No space left"):
        bring(tmp_path, Remote())


@pytest.mark.parametrize(("memory", "connections"), [(None, 8), (2**30, 8), (128 * 2**20, 4), (2**20, 1)])
def test_a_container_with_little_memory_has_fewer_connections(memory: int | None, connections: int) -> None:
    assert Limits.connections_for(memory) == connections
