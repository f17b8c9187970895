"""How a registry wants its uploads: one table of what is known of them, and what they refuse while we run.

A blob goes as PATCHes of 32 MiB each, as what is cut is then taken up where the last of them ended, or in one stream
where a registry takes nothing else. Chunks of 16 MiB and more cost docker-registry 2.8.3 no time over one stream, 4 MiB
cost it a third; smaller ones are also more round trips, and larger ones more to send again.
"""

import fnmatch
import threading
from dataclasses import dataclass, replace
from typing import Final

from mlimg.runtime.hosts import host_of

CHUNK_BYTES: Final = 32 * 1024**2
SMALLEST_CHUNK_BYTES: Final = 512 * 1024  # below that, a limit is none that somebody means for layers
_SMALLER: Final = 4
_MIB: Final = 1024**2


@dataclass(frozen=True, slots=True)
class Strategy:
    """The way of blobs into one registry. `chunk_bytes` None: one stream."""

    chunk_bytes: int | None
    max_layer_bytes: int | None = None  # as the registry documents it

    @property
    def least_worth_resuming_bytes(self) -> int:
        """What is no larger is sent again rather than written down."""
        return self.chunk_bytes or CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class _Known:
    hosts: str  # as shells match names
    in_chunks: bool
    max_layer_bytes: int | None = None


# First match. What is not here gets chunks: the open registries take them, and others say that they do not.
_KNOWN: Final = (
    # PATCH of more than 4 MiB is 416.
    # https://docs.github.com/en/packages/working-with-a-github-packages-registry/working-with-the-container-registry
    _Known("ghcr.io", in_chunks=False, max_layer_bytes=10 * 1000**3),
    _Known("*.ghcr.io", in_chunks=False, max_layer_bytes=10 * 1000**3),
    # https://cloud.google.com/artifact-registry/docs/reference/docker-api: no chunked uploads.
    _Known("*.pkg.dev", in_chunks=False),
    _Known("gcr.io", in_chunks=False),
    _Known("*.gcr.io", in_chunks=False),
    # 201 after the first chunk. https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html
    _Known("*.dkr.ecr.*.amazonaws.com", in_chunks=False, max_layer_bytes=52_000 * _MIB),
    _Known("*.dkr.ecr.*.amazonaws.com.cn", in_chunks=False, max_layer_bytes=52_000 * _MIB),
    _Known("*.dkr-ecr.*.on.aws", in_chunks=False, max_layer_bytes=52_000 * _MIB),
    # https://docs.aws.amazon.com/AmazonECR/latest/public/public-service-quotas.html
    _Known("public.ecr.aws", in_chunks=False, max_layer_bytes=10_000 * _MIB),
    # One request of more than 20 GB is refused.
    _Known("quay.io", in_chunks=True),
    # https://learn.microsoft.com/en-us/azure/container-registry/container-registry-skus
    _Known("*.azurecr.io", in_chunks=True, max_layer_bytes=200 * 1024**3),
    _Known("docker.io", in_chunks=True),
)


class Strategies:
    """The strategies of all registries, with what this process was refused. Safe to use from several threads."""

    def __init__(self) -> None:
        self._learned: dict[str, Strategy] = {}
        self._streams_refused: set[str] = set()
        self._chunks_refused: set[str] = set()
        self._lock = threading.Lock()

    def of(self, registry: str) -> Strategy:
        """The way to go now."""
        with self._lock:
            return self._learned.get(registry) or known_strategy(registry)

    def chunk_refused(self, registry: str, tried: Strategy, *, too_large: bool) -> bool:
        """A chunk of `tried` was refused: go another way from now on. False when there is none left."""
        with self._lock:
            now = self._learned.get(registry) or known_strategy(registry)
            if now != tried or tried.chunk_bytes is None:
                return now != tried  # another blob has learned it meanwhile
            smaller = tried.chunk_bytes // _SMALLER
            if too_large and smaller >= SMALLEST_CHUNK_BYTES:
                self._learned[registry] = replace(tried, chunk_bytes=smaller)
                return True
            self._chunks_refused.add(registry)
            if registry in self._streams_refused:
                return False
            self._learned[registry] = replace(tried, chunk_bytes=None)
            return True

    def stream_refused(self, registry: str, tried: Strategy, size_bytes: int) -> bool:
        """One request of `size_bytes` was too large: go in chunks from now on. False when there is no other way."""
        with self._lock:
            now = self._learned.get(registry) or known_strategy(registry)
            if now != tried:
                return True
            self._streams_refused.add(registry)
            chunk_bytes = CHUNK_BYTES if tried.chunk_bytes is None else tried.chunk_bytes
            while chunk_bytes >= size_bytes:
                chunk_bytes //= _SMALLER
            if registry in self._chunks_refused or chunk_bytes < SMALLEST_CHUNK_BYTES:
                return False
            self._learned[registry] = replace(tried, chunk_bytes=chunk_bytes)
            return True


def known_strategy(registry: str) -> Strategy:
    """What is known of a registry before it was asked anything."""
    host = host_of(registry)
    for known in _KNOWN:
        if fnmatch.fnmatchcase(host, known.hosts):
            return Strategy(CHUNK_BYTES if known.in_chunks else None, known.max_layer_bytes)
    return Strategy(CHUNK_BYTES)


# What a registry refuses it refuses to every client of this process.
STRATEGIES: Final = Strategies()
