"""Tars of any maker, whole and damaged. What damage cannot do: another error than ours, or a walk without end."""

import io
import tarfile
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, MlimgError
from mlimg.sources.tars import members

FILES = {"models/a.bin": b"a" * 1000, "models/" + "x" * 200: b"", "models/größe/b": b"b" * 512}


def tar(files: Mapping[str, bytes] = FILES, form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def walk(data: bytes, *, hashing: bool = True) -> dict[str, bytes]:
    found = {}
    raw = io.BytesIO(data)
    for member in members(raw, hashing=hashing, name="layer"):  # type: ignore[arg-type]
        found[member.path] = data[member.offset : member.offset + member.size_bytes]
        assert member.sha256 == (Digest.of(found[member.path]) if hashing else None)
    return found


@pytest.mark.parametrize("hashing", [True, False])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_are_found_where_they_lie(form: int, hashing: bool) -> None:
    data = tar(form=form)
    assert walk(data, hashing=hashing) == FILES
    assert all(member.executable for member in members(io.BytesIO(data), hashing=hashing, name="layer"))  # type: ignore[arg-type]


WHOLE = tar()


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.booleans())
@example(124, 0x80, True)  # a size in base 256
@example(124, 0xFF, True)  # a negative one
def test_a_changed_byte_does_no_harm(at: int, byte: int, hashing: bool) -> None:
    data = bytearray(WHOLE)
    data[at] = byte
    with suppress(MlimgError):
        walk(bytes(data), hashing=hashing)


@given(st.integers(0, 5 * 512))
def test_a_cut_tar_is_refused(length: int) -> None:
    with pytest.raises(IntegrityError):
        walk(WHOLE[:length])


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000001\0"])
def test_a_size_that_is_none_is_refused(size: bytes) -> None:
    header = bytearray(tar({"a": b"x"}))
    header[124:136] = size
    header[148:156] = f"{sum(header[:148]) + 8 * 32 + sum(header[156:512]):06o}\0 ".encode()
    for hashing in (True, False):
        with pytest.raises(MlimgError):
            walk(bytes(header), hashing=hashing)
