import io
import tarfile
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimg.runtime.layer_tar import END_OF_ARCHIVE, file_header, folder_headers, padding_bytes, single_head

NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x17F, exclude_characters="/\x7f"), min_size=1)


def by_tarfile(path: str, size_bytes: int, mode: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.mode = size_bytes, mode
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


@given(NAMES, st.one_of(st.integers(0, 2**40), st.sampled_from([0, 8**11 - 1, 8**11])), st.booleans())
def test_a_header_is_what_the_standard_library_writes(name: str, size_bytes: int, executable: bool) -> None:
    mode = 0o755 if executable else 0o644
    assert file_header(f"models/{name}", size_bytes, executable=executable) == by_tarfile(
        f"models/{name}", size_bytes, mode
    )


@pytest.mark.parametrize(("length", "extended"), [(100, False), (101, True)])
def test_a_name_that_does_not_fit_is_in_an_extended_header(length: int, extended: bool) -> None:
    assert (len(file_header("n" * length, 0)) > 512) is extended


def test_folders_are_named_once_and_the_topmost_never() -> None:
    known: set[str] = set()
    first = list(folder_headers("models/a/b/file", known))
    assert [tarfile.TarInfo.frombuf(header, "utf-8", "strict").name for header in first] == ["models/a", "models/a/b"]
    assert not list(folder_headers("models/a/other", known))
    assert not list(folder_headers("models/file", set()))


def test_a_layer_of_one_file_is_a_tar_of_folders_file_and_zeros() -> None:
    head = single_head(PurePosixPath("models/a/weights"), 5, executable=False)
    data = head + b"bytes" + bytes(padding_bytes(5)) + END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(member.name, member.mode) for member in tar] == [("models/a", 0o755), ("models/a/weights", 0o644)]
        weights = tar.extractfile("models/a/weights")
        assert weights is not None
        assert weights.read() == b"bytes"
