"""A registry client: reads and writes manifests and blobs as streams, and believes nothing without its digest.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md. `docs/runtime-contract.md` lists the
time-outs. Credentials go to the registry's own origin; redirects are followed by hand, without them.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from threading import Event
from typing import Final

from urllib3 import exceptions

from mlimg.runtime.descriptor import Blob, Descriptor, OnBytes, ignore_bytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    ConflictError,
    CredentialsError,
    IntegrityError,
    LimitError,
    RemoteError,
)
from mlimg.runtime.oci.client import Client, expect
from mlimg.runtime.oci.image import (
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    PlatformTriple,
    RemoteImage,
    choose_platform,
    is_index,
    media_type_of,
    parse_config,
    parse_manifest,
)
from mlimg.runtime.oci.journal import Journal, Slot
from mlimg.runtime.oci.session import Session
from mlimg.runtime.oci.strategy import STRATEGIES
from mlimg.runtime.oci.transport import Access, Unavailable, bytes_before, discard, read_capped, read_pieces
from mlimg.runtime.oci.upload import OnNote, PushedBlob, Upload, ignore_note
from mlimg.runtime.reference import ImageReference

_FIRST_RANGE_BYTES: Final = 16 * 1024  # holds the manifest of a model of a hundred files
_RANGES_GROW: Final = 4


class Registry:
    """Every registry, reached the way `access` says. Safe to use from several threads.

    Every method raises CredentialsError, RemoteError and RemoteTemporaryError, and Stopped once
    `stop` is set; what else it raises, it says.
    """

    def __init__(self, access: Access, stop: Event | None = None) -> None:
        self._client = Client(access, stop)

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    # Reading

    def resolve(self, reference: ImageReference) -> Descriptor | None:
        """What a tag or digest stands for now, None where there is nothing. Raises IntegrityError, LimitError."""
        found = self._manifest(reference)
        return found[0] if found else None

    def manifest(self, reference: ImageReference) -> tuple[Descriptor, bytes]:
        """A manifest's own bytes. Raises IntegrityError, LimitError; RemoteError where there is none."""
        found = self._manifest(reference)
        if found is None:
            raise RemoteError(f"{reference} does not exist", hint="check the name and the version")
        return found

    def image(self, reference: ImageReference, platform: PlatformTriple | None = None) -> RemoteImage:
        """The image for `platform`; without one the reference must name a single image.

        Raises IntegrityError, LimitError, and EngineError where the image is for other platforms.
        """
        descriptor, data = self.manifest(reference)
        if is_index(descriptor):
            if platform is None:
                raise IntegrityError(f"{reference} is a list of images, not one")
            chosen = choose_platform(data, platform, str(reference))
            descriptor, data = self.manifest(reference.with_digest(chosen.digest))
            if is_index(descriptor):
                raise IntegrityError(f"{reference} is a list of lists of images")
        parts = parse_manifest(data, str(reference))
        if parts.config.size_bytes > MAX_CONFIG_BYTES:
            raise LimitError(f"the config of {reference} is larger than {MAX_CONFIG_BYTES} bytes")
        config = b"".join(self.open_blob(reference, parts.config))
        return parse_config(descriptor, parts, config, str(reference))

    def has_blob(self, reference: ImageReference, digest: Digest, *, push: bool = False) -> int | None:
        """The size of a blob that the repository has, 0 where the registry does not tell; None without the blob.

        `push` asks with the rights that a push needs anyway.
        """
        response = self._client.request(reference, "HEAD", f"blobs/{digest}", push=push)
        discard(response)
        if response.status == 404:
            return None
        expect(response, f"{reference.name} {digest}", 200)
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0

    def can_read_blob(self, reference: ImageReference, digest: Digest) -> bool:
        """Whether a repository, which may be anybody's, has a blob and lets us have it."""
        try:
            return self.has_blob(reference, digest) is not None
        except (CredentialsError, RemoteError):
            return False

    def open_blob(
        self, reference: ImageReference, descriptor: Descriptor, *, only_start: bool = False
    ) -> Generator[bytes, None, None]:
        """Stream a blob. A connection that drops is taken up again where it broke.

        The last piece is followed by the check: nothing may be used before the iterator has ended. With `only_start`
        for whoever stops early: the blob is asked for in ranges that grow, as what is on its way by then would be
        lost, connection and all; a registry without ranges sends the whole. Raises IntegrityError when size or digest
        are not those of `descriptor`.
        """
        what = f"{reference.name} {descriptor.digest}"
        size = descriptor.size_bytes
        sha256, received = hashlib.sha256(), 0
        end = min(size, _FIRST_RANGE_BYTES) if only_start else size
        patience = self._client.patience()
        while True:
            try:
                with closing(self._blob_from(reference, descriptor, received, end)) as pieces:
                    for piece in pieces:
                        received += len(piece)
                        if received > size:
                            raise IntegrityError(f"{what} is longer than {size} bytes")
                        sha256.update(piece)
                        patience = self._client.patience()
                        yield piece
                if received < end or received == size:
                    break
                end = min(size, max(received, end * _RANGES_GROW))
            except Unavailable as failure:
                patience.wait(failure)
        if received != size:
            raise IntegrityError(f"{what} has {received} bytes instead of {size}")
        if sha256.hexdigest() != descriptor.digest.hex:
            raise IntegrityError(f"{what} arrived with other content than its digest says")

    def _blob_from(
        self, reference: ImageReference, descriptor: Descriptor, offset: int, end: int
    ) -> Generator[bytes, None, None]:
        """One attempt at the bytes from `offset` on, up to `end` where the registry has ranges. Raises Unavailable."""
        last = end - 1 if end < descriptor.size_bytes else ""
        headers = {"Range": f"bytes={offset}-{last}"} if offset or last else {}
        response = self._client.request(reference, "GET", f"blobs/{descriptor.digest}", headers=headers)
        try:
            expect(response, f"{reference.name} {descriptor.digest}", 200, 206)
            before = bytes_before(response, offset)
            if before is None:
                raise RemoteError(f"{reference.registry} sends another part of a blob than asked for")
            yield from read_pieces(response, self._client.stop, skip_bytes=before)
            response.release_conn()
        except exceptions.HTTPError as error:
            raise Unavailable(f"{reference.name}: the connection broke while a blob was read") from error
        finally:
            response.close()

    def _manifest(self, reference: ImageReference) -> tuple[Descriptor, bytes] | None:
        """Get and check. The header `Docker-Content-Digest` is no identity: the bytes are."""
        wanted = reference.digest.text if reference.digest else reference.tag or "latest"
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}

        def read() -> tuple[Mapping[str, str], bytes] | None:
            response = self._client.request(reference, "GET", f"manifests/{wanted}", headers=accept)
            if response.status == 404:
                discard(response)
                return None
            expect(response, str(reference), 200)
            return response.headers, read_capped(response, MAX_MANIFEST_BYTES, f"the manifest of {reference}")

        answer = self._client.patience().run(read)
        if answer is None:
            return None
        headers, data = answer
        digest = Digest.of(data)
        told = headers.get("Docker-Content-Digest", digest.text)
        if told != digest.text or reference.digest not in {None, digest}:
            raise IntegrityError(f"{reference}: the manifest's content does not match its digest")
        media_type = media_type_of(data, headers.get("Content-Type", ""), str(reference))
        return Descriptor(media_type, digest, len(data)), data

    # Writing

    def push_blob(
        self,
        reference: ImageReference,
        blob: Blob,
        *,
        mount_from: Sequence[str] = (),
        on_bytes: OnBytes = ignore_bytes,
        on_note: OnNote = ignore_note,
        journal: Journal | None = None,
        anew: bool = False,
    ) -> PushedBlob:
        """Bring a blob into a repository: nothing if it is there, a mount, else its bytes, from where they were cut.

        `mount_from` are repositories of the same registry that may have it. A blob without a digest is hashed while
        it goes. With `journal` an upload that another process did not finish is gone on with, and left to the next
        one where this one fails. `anew` sends it whatever the registry claims to have. Raises what `blob.chunks()`
        raises, and IntegrityError when its bytes are not those announced.
        """
        key = blob.digest.text if blob.digest else blob.resume_key
        holding: AbstractContextManager[Slot | None] = nullcontext()
        if journal and key and blob.size_bytes > STRATEGIES.of(reference.registry).least_worth_resuming_bytes:
            holding = journal.hold(reference.registry, reference.repository, key)
        with holding as slot:
            return Upload(
                self._client,
                reference,
                blob,
                mount_from=mount_from,
                on_bytes=on_bytes,
                on_note=on_note,
                slot=slot,
                anew=anew,
            ).run()

    def check_push(self, reference: ImageReference) -> None:
        """Prove that a repository can be pushed to: an upload is begun there, and given up."""
        if session := Session.open(self._client, reference):
            session.cancel()

    def push_manifest(self, reference: ImageReference, data: bytes, media_type: str) -> Descriptor:
        """Store a manifest under the tag, else the digest, of `reference`, and read it back.

        Raises IntegrityError when the registry stored other bytes, ConflictError when the tag stands for other content
        afterwards: somebody moved it at the same moment. Raises BlobMissingError when the registry does not have what
        the manifest names: push that once more, `anew`.
        """
        digest = Digest.of(data)
        target = reference.tag or digest.text
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        response = self._client.request(
            reference, "PUT", f"manifests/{target}", headers=headers, body=lambda: [data], push=True
        )
        expect(response, str(reference), 200, 201, 202)
        discard(response)
        pinned = ImageReference(reference.registry, reference.repository, digest=digest)
        if self.manifest(pinned)[1] != data:
            raise IntegrityError(f"{pinned} was stored with other content")
        if reference.tag:
            found = self.resolve(reference.with_tag(reference.tag))
            if found is None or found.digest != digest:
                raise ConflictError(
                    f"{reference.name}:{reference.tag} was moved by somebody else while it was pushed",
                    hint="run again: it tells whether the other content is the same",
                )
        return Descriptor(media_type, digest, len(data))
