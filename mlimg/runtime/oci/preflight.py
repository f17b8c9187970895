"""What can be known before bytes move: that a push is allowed, that no layer is too large, what the registry lacks."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from mlimg.runtime.descriptor import Blob
from mlimg.runtime.errors import LimitError
from mlimg.runtime.oci.registry import Registry
from mlimg.runtime.oci.strategy import STRATEGIES
from mlimg.runtime.reference import ImageReference

_ASKED_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a push would do. A blob without a digest counts as missing: nobody can ask for it."""

    present_bytes: int  # in the repository
    mountable_bytes: int  # in another one of the same registry
    missing_bytes: int  # to be sent


def preflight(
    registry: Registry,
    reference: ImageReference,
    blobs: Sequence[Blob],
    *,
    mount_from: Sequence[str] = (),
    describe: Callable[[Blob], str] | None = None,
    begin: bool = True,
) -> Preflight:
    """Ask a registry about a push. Nothing is left behind there.

    With `begin` an upload is begun and given up, which proves that one is allowed; without it the registry is only
    asked for the right to push, as far as it gives such rights by tokens. `describe` names a blob by what is in it,
    such as a model's file. Raises LimitError when a blob is larger than the registry takes, CredentialsError and
    RemoteError when it takes none from us, RemoteTemporaryError.
    """
    check_limits(reference, blobs, describe=describe)
    if begin:
        registry.check_push(reference)
    others = [replace(reference, repository=name) for name in mount_from if name != reference.repository]

    def ask(blob: Blob) -> Preflight:
        size = blob.size_bytes
        if blob.digest is None:
            return Preflight(0, 0, size)
        if registry.has_blob(reference, blob.digest, push=True) is not None:
            return Preflight(size, 0, 0)
        if any(registry.can_read_blob(other, blob.digest) for other in others):
            return Preflight(0, size, 0)
        return Preflight(0, 0, size)

    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="preflight") as threads:
        answers = list(threads.map(ask, blobs))
    return Preflight(
        sum(answer.present_bytes for answer in answers),
        sum(answer.mountable_bytes for answer in answers),
        sum(answer.missing_bytes for answer in answers),
    )


def check_limits(
    reference: ImageReference, blobs: Sequence[Blob], *, describe: Callable[[Blob], str] | None = None
) -> None:
    """Hold blobs against the largest layer that a registry is known to take; nothing is asked. Raises LimitError."""
    limit = STRATEGIES.of(reference.registry).max_layer_bytes
    for blob in blobs:
        if limit is not None and blob.size_bytes > limit:
            what = describe(blob) if describe else "a layer"
            raise LimitError(
                f"{what} has {blob.size_bytes} bytes, and {reference.registry} takes layers of {limit} bytes at most",
                hint="keep the model in another store, such as model.store: s3://… or another registry, "
                "or split the file",
            )
