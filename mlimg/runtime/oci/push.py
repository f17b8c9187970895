"""Many blobs at once, and then the manifest that names them."""

from collections.abc import Callable, Container, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from threading import Event, Lock
from typing import Final, Protocol, TypeVar

from mlimg.runtime.descriptor import Blob, OnBytes, ignore_bytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.oci.client import BlobMissingError
from mlimg.runtime.oci.journal import Journal
from mlimg.runtime.oci.registry import Registry
from mlimg.runtime.oci.transport import Access
from mlimg.runtime.oci.upload import OnNote, PushedBlob, ignore_note
from mlimg.runtime.reference import ImageReference

_MOST_TOLD: Final = 100  # of one push: manifests are named one by one, and each may miss others
_BLOBS_AT_ONCE: Final = 4  # what a registry allows to run side by side: the chunks of one blob go in order

_T = TypeVar("_T")


class Send(Protocol):
    """Brings all that a manifest names into its repository."""

    def __call__(self, *, anew: Container[Digest]) -> Sequence[PushedBlob]:
        """Send what is not there, and whatever the registry claims what is in `anew`, which is false when empty."""


class _Everything:
    """All digests that there are."""

    def __contains__(self, digest: object) -> bool:
        return True


_EVERYTHING: Final = _Everything()


def send_and_name(send: Send, name: Callable[[], _T], *, on_note: OnNote = ignore_note) -> tuple[_T, list[PushedBlob]]:
    """Send blobs, and store with `name` the manifests that name them; gives what that gives, and how the blobs came.

    A registry may have said that it has a blob, out of a cache or just before it removed it, and miss it when it is
    named. That is told with `on_note`, and what it misses is sent anew, everything where it does not tell what, and
    named again. Raises what both raise; BlobMissingError when the registry misses again what it was sent anew.
    """
    pushed: list[PushedBlob] = []
    anew: Container[Digest] = ()
    missed: set[Digest] = set()
    while True:
        pushed += send(anew=anew)
        try:
            return name(), pushed
        except BlobMissingError as error:
            if anew is _EVERYTHING or (error.digests and error.digests <= missed):
                raise
            told = bool(error.digests) and len(missed) < _MOST_TOLD
            anew = error.digests if told else _EVERYTHING
            missed |= error.digests
            on_note(f"{error.message}: {'what it lacks is' if told else 'all layers are'} sent again")


def push_blobs(
    access: Access,
    reference: ImageReference,
    blobs: Sequence[Blob],
    *,
    mount_from: Sequence[str] = (),
    on_bytes: OnBytes = ignore_bytes,
    on_note: OnNote = ignore_note,
    journal: Journal | None = None,
    anew: Container[Digest] = (),
) -> list[PushedBlob]:
    """Bring blobs into a repository, several at once, the largest first; the first that fails stops the others.

    The results are in the order of `blobs`. `on_bytes` and `on_note` are called by one thread at a time. Raises as
    `Registry.push_blob`.
    """
    stop, telling = Event(), Lock()
    registry = Registry(access, stop)

    def count(size_bytes: int) -> None:
        with telling:
            on_bytes(size_bytes)

    def note(text: str) -> None:
        with telling:
            on_note(text)

    def push(blob: Blob) -> PushedBlob:
        # One without a digest is not looked for: it is sent in any case.
        is_lost = blob.digest is not None and blob.digest in anew
        return registry.push_blob(
            reference, blob, mount_from=mount_from, on_bytes=count, on_note=note, journal=journal, anew=is_lost
        )

    with closing(registry), ThreadPoolExecutor(_BLOBS_AT_ONCE, thread_name_prefix="push-blob") as threads:
        # The last one to start should not be the one that takes longest.
        order = sorted(range(len(blobs)), key=lambda index: -blobs[index].size_bytes)
        pushes = {index: threads.submit(push, blobs[index]) for index in order}
        try:
            for done in wait(pushes.values(), return_when=FIRST_EXCEPTION).done:
                done.result()
            return [pushes[index].result() for index in range(len(blobs))]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            stop.set()
            raise
