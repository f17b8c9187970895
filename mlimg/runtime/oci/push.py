"""Many blobs at once, and then the manifest that names them."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from threading import Event, Lock
from typing import Final, Protocol, TypeVar

from mlimg.runtime.descriptor import Blob, OnBytes, ignore_bytes
from mlimg.runtime.oci.client import BlobMissingError
from mlimg.runtime.oci.journal import Journal
from mlimg.runtime.oci.registry import Registry
from mlimg.runtime.oci.transport import Access
from mlimg.runtime.oci.upload import OnNote, PushedBlob, ignore_note
from mlimg.runtime.reference import ImageReference

_BLOBS_AT_ONCE: Final = 4  # what a registry allows to run side by side: the chunks of one blob go in order

_T = TypeVar("_T")


class Send(Protocol):
    """Brings all that a manifest names into its repository."""

    def __call__(self, *, anew: bool) -> Sequence[PushedBlob]:
        """Send what is not there, with `anew` whatever the registry claims to have."""


def send_and_name(send: Send, name: Callable[[], _T], *, on_note: OnNote = ignore_note) -> tuple[_T, list[PushedBlob]]:
    """Send blobs, and store with `name` the manifests that name them; gives what that gives, and how the blobs came.

    A registry may have said that it has a blob, out of a cache or just before it removed it, and miss it when it is
    named. That is told with `on_note`, and everything is sent anew and named again, once. Raises what both raise;
    BlobMissingError when the registry has lost it again.
    """
    pushed = list(send(anew=False))
    try:
        return name(), pushed
    except BlobMissingError as error:
        on_note(f"{error.message}: all layers are sent again")
    pushed += send(anew=True)
    return name(), pushed


def push_blobs(
    access: Access,
    reference: ImageReference,
    blobs: Sequence[Blob],
    *,
    mount_from: Sequence[str] = (),
    on_bytes: OnBytes = ignore_bytes,
    on_note: OnNote = ignore_note,
    journal: Journal | None = None,
    anew: bool = False,
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
        return registry.push_blob(
            reference, blob, mount_from=mount_from, on_bytes=count, on_note=note, journal=journal, anew=anew
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
