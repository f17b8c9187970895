import io
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import islice

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, RemoteError, RemoteTemporaryError
from mlimg.sources.ranged import RangedFile

DATA = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Place:
    """Gives bytes in pieces; breaks off after each of `cuts` bytes, once."""

    data: bytes = DATA
    piece_bytes: int = 1000
    cuts: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    open: int = 0

    def read(self, offset: int) -> Generator[bytes, None, None]:
        self.asked.append(offset)
        end = offset + self.cuts.pop(0) if self.cuts else len(self.data)
        self.open += 1
        try:
            while offset < end:
                yield self.data[offset : min(offset + self.piece_bytes, end)]
                offset += self.piece_bytes
            if end < len(self.data):
                raise RemoteTemporaryError("the connection broke")
        finally:
            self.open -= 1


def ranged(place: Place, sha256: Digest | None = None, size_bytes: int = len(DATA)) -> RangedFile:
    return RangedFile("model.bin", size_bytes, place.read, sha256=sha256, attempts=3, backoff_seconds=0.001)


def test_in_order_it_is_one_stream() -> None:
    place = Place()
    with ranged(place, Digest.of(DATA)) as file:
        assert file.readall() == DATA
        assert file.read(1) == b""
    assert place.asked == [0]
    assert place.open == 0


def test_a_seek_asks_from_there_and_a_short_way_ahead_is_read() -> None:
    place = Place()
    with ranged(place) as file:
        assert file.read(10) == DATA[:10]
        file.seek(5000)
        assert file.read(10) == DATA[5000:5010]
        file.seek(-10, io.SEEK_END)
        assert file.read(100) == DATA[-10:]
        file.seek(7)
        file.seek(3, io.SEEK_CUR)
        assert (file.tell(), file.read(1)) == (10, DATA[10:11])
    assert place.asked == [0, len(DATA) - 10, 10]
    assert place.open == 0


def test_a_broken_connection_is_taken_up_where_it_broke() -> None:
    place = Place(cuts=[0, 1, 500_000, 999])
    with ranged(place, Digest.of(DATA)) as file:
        assert file.readall() == DATA
    assert place.asked == [0, 0, 1, 500_001, 501_000]


def test_patience_ends_without_progress() -> None:
    place = Place(cuts=[0] * 3)
    with ranged(place) as file, pytest.raises(RemoteTemporaryError):
        file.read(1)
    assert place.asked == [0, 0, 0]
    twin = Place(cuts=[0] * 2)
    with ranged(twin) as file:
        assert file.readall() == DATA


def test_other_content_is_refused_before_the_last_bytes_are_given() -> None:
    with ranged(Place(DATA[:-1] + b"\x00"), Digest.of(DATA)) as file:
        pieces = iter(lambda: file.read(65536), b"")
        received = b"".join(islice(pieces, len(DATA) // 1000))
        with pytest.raises(IntegrityError, match="other content"):
            list(pieces)
    assert 0 < len(received) < len(DATA)


def test_a_file_that_is_longer_than_listed_is_refused() -> None:
    with ranged(Place(DATA + b"x"), Digest.of(DATA)) as file, pytest.raises(IntegrityError, match="more than"):
        file.readall()


def test_a_file_that_is_shorter_than_listed_is_asked_for_again_and_refused() -> None:
    with ranged(Place(DATA[:-1])) as file, pytest.raises(RemoteTemporaryError, match="ended after"):
        file.readall()


def test_ends_that_are_read_first_do_not_spoil_the_check() -> None:
    place = Place(DATA[:-1] + b"\x00")
    with ranged(place, Digest.of(DATA)) as file:
        file.read(1000)
        file.seek(-1000, io.SEEK_END)
        assert len(file.read(1000)) == 1000
        file.seek(0)
        with pytest.raises(IntegrityError):
            file.readall()


def test_a_refusal_is_not_asked_for_again() -> None:
    asked = []

    def read(offset: int) -> Generator[bytes, None, None]:
        asked.append(offset)
        raise RemoteError("gone")
        yield b""

    with RangedFile("x", 10, read) as file, pytest.raises(RemoteError):
        file.read(1)
    assert asked == [0]


def test_before_the_start_there_is_nothing() -> None:
    with ranged(Place()) as file:
        with pytest.raises(ValueError, match="before its start"):
            file.seek(-1)
        file.seek(len(DATA) + 5)
        assert file.read(1) == b""
