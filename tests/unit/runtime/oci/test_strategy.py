"""Which way a registry's blobs go."""

import pytest

from mlimg.runtime.oci.strategy import CHUNK_BYTES, SMALLEST_CHUNK_BYTES, Strategies, known_strategy

GB = 1000**3
MIB = 1024**2


@pytest.mark.parametrize(
    ("registry", "in_chunks", "max_layer_bytes"),
    [
        ("ghcr.io", False, 10 * GB),
        ("containers.ghcr.io:443", False, 10 * GB),
        ("europe-docker.pkg.dev", False, None),
        ("gcr.io", False, None),
        ("eu.gcr.io", False, None),
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", False, 52_000 * MIB),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", False, 52_000 * MIB),
        ("public.ecr.aws", False, 10_000 * MIB),
        ("quay.io", True, None),
        ("mine.azurecr.io", True, 200 * 1024**3),
        ("docker.io", True, None),
        ("harbor.example.com", True, None),
        ("127.0.0.1:5000", True, None),
        ("evil-ghcr.io", True, None),
        ("ghcr.io.evil.example", True, None),
        ("[::1]:5000", True, None),
    ],
)
def test_what_is_known_of_registries(registry: str, in_chunks: bool, max_layer_bytes: int | None) -> None:
    known = known_strategy(registry)
    assert (known.chunk_bytes, known.max_layer_bytes) == (CHUNK_BYTES if in_chunks else None, max_layer_bytes)


def test_what_is_refused_is_remembered_for_one_registry() -> None:
    strategies = Strategies()
    assert strategies.chunk_refused("one.example", strategies.of("one.example"), too_large=False)
    assert strategies.of("one.example").chunk_bytes is None
    assert strategies.of("two.example").chunk_bytes == CHUNK_BYTES


def test_chunks_shrink_until_there_is_one_stream_and_then_nothing() -> None:
    strategies, sizes = Strategies(), []
    while strategies.chunk_refused("one.example", before := strategies.of("one.example"), too_large=True):
        sizes.append(before.chunk_bytes)
        if strategies.of("one.example").chunk_bytes is None:
            break
    assert sizes[0] == CHUNK_BYTES
    assert SMALLEST_CHUNK_BYTES <= (sizes[-1] or 0) < 4 * SMALLEST_CHUNK_BYTES
    assert not strategies.stream_refused("one.example", strategies.of("one.example"), GB)


def test_a_limit_on_one_stream_leads_to_chunks_and_their_refusal_to_an_end() -> None:
    strategies = Strategies()
    streamed = strategies.of("ghcr.io")
    assert strategies.stream_refused("ghcr.io", streamed, GB)
    in_chunks = strategies.of("ghcr.io")
    assert (in_chunks.chunk_bytes, in_chunks.max_layer_bytes) == (CHUNK_BYTES, 10 * GB)
    assert not strategies.chunk_refused("ghcr.io", in_chunks, too_large=False)


def test_a_small_stream_that_is_too_large_cannot_become_smaller_than_the_smallest_chunk() -> None:
    strategies = Strategies()
    before = strategies.of("one.example")
    assert not strategies.stream_refused("one.example", before, SMALLEST_CHUNK_BYTES)
    assert strategies.of("one.example") == before
    assert Strategies().stream_refused("one.example", before, SMALLEST_CHUNK_BYTES + 1)


def test_what_another_blob_has_learned_meanwhile_is_taken() -> None:
    strategies = Strategies()
    before = strategies.of("one.example")
    strategies.chunk_refused("one.example", before, too_large=True)
    now = strategies.of("one.example")
    assert strategies.chunk_refused("one.example", before, too_large=True)
    assert strategies.stream_refused("one.example", before, GB)
    assert strategies.of("one.example") == now
