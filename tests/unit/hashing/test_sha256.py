import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimg.hashing import sha256

needed = pytest.mark.skipif(not sha256.AVAILABLE, reason="no compiler, or a processor without instructions for it")
piece = st.binary(max_size=300) | st.integers(0, 20_000).map(os.urandom)


def test_it_is_compiled_where_it_can_be() -> None:
    able = sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("cc") is not None
    if not (able and "sha_ni" in Path("/proc/cpuinfo").read_text()):
        pytest.skip("nothing can compile it here, or run it")
    assert sha256.AVAILABLE


@needed
@given(before=st.integers(0, 5), pieces=st.lists(piece, max_size=8), after=st.integers(0, 1100))
def test_both_digests_are_those_of_hashlib(before: int, pieces: list[bytes], after: int) -> None:
    head, tail = os.urandom(64 * before), bytes(after)
    tar, file = sha256.Sha256(), sha256.Sha256()
    tar.update(head)
    for number, data in enumerate(pieces):
        tar.update_with(file, memoryview(bytearray(data)) if number % 2 else data)
    tar.update(tail)
    content = b"".join(pieces)
    assert file.hexdigest() == hashlib.sha256(content).hexdigest()
    assert tar.hexdigest() == hashlib.sha256(head + content + tail).hexdigest()


@needed
def test_a_digest_goes_on_after_it_was_told() -> None:
    one = sha256.Sha256()
    for size in (0, 55, 56, 63, 64, 65, 119, 120, 2**20 + 1):
        one.update(bytes(size))
    told = one.hexdigest()
    assert one.hexdigest() == told
    one.update(b"x")
    assert one.hexdigest() == hashlib.sha256(bytes(55 + 56 + 63 + 64 + 65 + 119 + 120 + 2**20 + 1) + b"x").hexdigest()


@needed
def test_two_that_stand_at_different_places_of_a_block_are_refused() -> None:
    tar, file = sha256.Sha256(), sha256.Sha256()
    tar.update(b"x")
    with pytest.raises(ValueError, match="different places of a block"):
        tar.update_with(file, bytes(64))
