from typing import Any

import pytest

from mlimg.runtime.descriptor import OCI_LAYER, Descriptor, MemoryBlob
from mlimg.runtime.digest import Digest

GOOD: dict[str, Any] = {"mediaType": OCI_LAYER, "digest": Digest.of(b"").text, "size": 0}


def test_a_descriptor_is_written_as_it_was_read() -> None:
    for value in (GOOD, {**GOOD, "annotations": {"a": "1", "b": "2"}}):
        assert Descriptor.parse(value).to_json() == value
    assert Descriptor.parse({**GOOD, "urls": ["https://example.com"], "data": "AA=="}).to_json() == GOOD


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {**GOOD, "size": -1},
        {**GOOD, "size": 2**53},
        {**GOOD, "size": True},
        {**GOOD, "size": "1"},
        {**GOOD, "digest": "sha512:" + "0" * 128},
        {**GOOD, "digest": None},
        {**GOOD, "mediaType": 1},
        {**GOOD, "annotations": []},
        {**GOOD, "annotations": {"a": 1}},
    ],
)
def test_a_malformed_descriptor_is_refused(value: object) -> None:
    """E18"""
    with pytest.raises(ValueError, match=r"descriptor|sha256"):
        Descriptor.parse(value)


def test_a_blob_in_memory_gives_its_bytes_each_time() -> None:
    blob = MemoryBlob(b"{}")
    assert (blob.size_bytes, blob.digest, [*blob.chunks()], [*blob.chunks()]) == (2, Digest.of(b"{}"), [b"{}"], [b"{}"])
