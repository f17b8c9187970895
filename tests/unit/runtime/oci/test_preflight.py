"""What is asked of a registry before bytes move."""

from collections.abc import Iterator

import pytest

from mlimg.runtime.descriptor import MemoryBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import CredentialsError, LimitError, RemoteError, RemoteTemporaryError
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.oci.preflight import Preflight, check_limits, preflight
from mlimg.runtime.reference import ImageReference
from tests.support.faults import Answer, Fault, FaultServer
from tests.support.registry import MemoryRegistry

QUICK = Access(backoff_seconds=0.01, stall_seconds=1)
HERE, THERE, NOWHERE = b"here" * 10, b"there" * 100, b"nowhere" * 1000


class Announced:
    """A blob that is only spoken of."""

    resume_key = None

    def __init__(self, size_bytes: int, digest: Digest | None = None) -> None:
        self.size_bytes = size_bytes
        self.digest = digest

    def chunks(self) -> Iterator[bytes]:
        raise AssertionError("nobody reads a blob before bytes move")


def at(server: FaultServer) -> ImageReference:
    return ImageReference.parse(f"{server.host}/team/app:1")


def test_the_bytes_are_told_that_are_there_elsewhere_and_nowhere() -> None:
    memory = MemoryRegistry()
    memory.put("team/app", HERE)
    memory.put("team/models", THERE)
    blobs = [Announced(len(data), Digest.of(data)) for data in (HERE, THERE, NOWHERE)]
    with FaultServer(memory) as server:
        found = preflight(Registry(QUICK), at(server), [*blobs, Announced(5)], mount_from=["team/app", "team/models"])
        assert {request.method for request in server.requests} == {"HEAD", "POST", "DELETE"}
        assert not any(request.body for request in server.requests)
    assert found == Preflight(present_bytes=40, mountable_bytes=500, missing_bytes=7005)
    assert not memory.sessions
    assert len(memory.blobs) == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(401), CredentialsError),
        (Answer(403), RemoteError),
        (Answer(404), RemoteError),
        (Answer(405), RemoteError),
        (Answer(503), RemoteTemporaryError),
    ],
)
def test_a_push_that_is_not_allowed_is_known_at_once(answer: Answer, error: type[Exception]) -> None:
    memory = MemoryRegistry()
    fault = Fault("POST", times=99, answer=answer)
    with FaultServer(memory, fault) as server, pytest.raises(error):
        preflight(Registry(QUICK), at(server), [MemoryBlob(HERE)])
    assert fault.fired
    assert not memory.sessions


def test_a_repository_that_may_not_be_read_is_only_not_mounted_from() -> None:
    fault = Fault("HEAD", "team/models", times=99, answer=Answer(403))
    with FaultServer(MemoryRegistry(), fault) as server:
        found = preflight(Registry(QUICK), at(server), [MemoryBlob(THERE)], mount_from=["team/models"])
    assert fault.fired == 1
    assert found.missing_bytes == len(THERE)


def test_a_layer_over_the_registrys_limit_is_named_with_it_before_anything_is_asked() -> None:
    limit = 10 * 1000**3
    reference = ImageReference.parse("ghcr.io/team/app:1")
    with pytest.raises(LimitError, match=f"weights.bin has {limit + 1} bytes") as caught:
        preflight(Registry(QUICK), reference, [Announced(5), Announced(limit + 1)], describe=lambda _: "weights.bin")
    assert str(limit) in caught.value.message.partition("bytes")[2]
    assert "store" in caught.value.hint
    check_limits(reference, [Announced(5), Announced(limit)])  # the twin
