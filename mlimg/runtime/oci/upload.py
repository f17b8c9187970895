"""One blob on its way into a repository: found there, mounted from another, or sent as the registry takes it.

`strategy` says whether in chunks or in one stream. What is cut goes on from the offset that the registry names; a
`Slot` of the journal lets another process do so.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from urllib3.response import BaseHTTPResponse

from mlimg.runtime.descriptor import Blob, OnBytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import CredentialsError, IntegrityError, LimitError, ModelError, RemoteError
from mlimg.runtime.oci.client import Client, Renewed, expect, refusal
from mlimg.runtime.oci.journal import Entry, Slot
from mlimg.runtime.oci.outgoing import Outgoing
from mlimg.runtime.oci.session import Session, held_bytes
from mlimg.runtime.oci.strategy import STRATEGIES, Strategy
from mlimg.runtime.oci.transport import Unavailable, discard
from mlimg.runtime.reference import ImageReference

# After the last byte a registry may copy the blob to its store before it answers.
_ANSWER_SECONDS: Final = 60.0
_ANSWER_SECONDS_PER_GIB: Final = 30.0
_GIB: Final = 1024**3
_MIB: Final = 1024**2
# What a registry that wants its uploads another way answers to a chunk.
_CHUNK_REFUSED: Final = frozenset({400, 404, 405, 413, 416, 501})

OnNote = Callable[[str], None]
"""Called with a line that the user may want to read."""


def ignore_note(_text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class PushedBlob:
    """How a blob came into a repository. `sent_bytes` counts what failed attempts sent, too."""

    digest: Digest
    size_bytes: int
    sent_bytes: int
    how: Literal["exists", "mounted", "sent"]


class _AnotherWay(Exception):  # noqa: N818 (nothing failed: a way that this registry does not offer)
    """The session is given up; the next attempt goes another way."""


class Upload:
    """The way of one blob; `run` goes it, once."""

    def __init__(
        self,
        client: Client,
        target: ImageReference,
        blob: Blob,
        *,
        mount_from: Sequence[str],
        on_bytes: OnBytes,
        on_note: OnNote,
        slot: Slot | None,
        anew: bool,
    ) -> None:
        self._client = client
        self._target = target
        self._blob = blob
        self._mount_from = [] if anew else [name for name in mount_from if name != target.repository]
        self._on_bytes = on_bytes
        self._on_note = on_note
        self._slot = slot
        self._anew = anew
        self._digest = blob.digest
        self._outgoing = Outgoing(blob, target.name, client.stop)
        self._session: Session | None = None
        self._told_bytes = 0
        self._sent_bytes = 0
        self._best_bytes = 0  # the furthest that any session has come
        self._renewed_at = self._asked_again_at = -1

    def run(self) -> PushedBlob:
        """Bring the blob there. Raises as `registry.Registry.push_blob`."""
        try:
            pushed = self._push()
        except BaseException as error:
            # Left behind is what the next run can take up, and nothing else.
            hopeless = isinstance(error, (ModelError, IntegrityError, RemoteError, LimitError))
            if hopeless or self._slot is None or not (self._session and self._session.bound_bytes):
                self._end_session()
            raise
        finally:
            self._outgoing.close()
        if self._slot:
            self._slot.forget()
        return pushed

    def _push(self) -> PushedBlob:
        patience = self._client.patience()
        while True:
            best_bytes = self._best_bytes
            try:
                return self._attempt()
            except _AnotherWay:
                self._end_session()
            except Unavailable as failure:
                if isinstance(failure, Renewed):
                    if self._renewed_at == self._outgoing.position:
                        raise CredentialsError(str(failure), hint=f"docker login {self._target.registry}") from failure
                    self._renewed_at = self._outgoing.position
                if self._best_bytes > best_bytes:
                    patience = self._client.patience()
                patience.wait(failure)

    def _attempt(self) -> PushedBlob:
        if self._digest and not (self._anew and not self._sent_bytes) and self._exists(self._digest):
            # This is also what tells of a commit whose answer was lost.
            self._end_session()
            return self._done("sent" if self._sent_bytes else "exists")
        offset = self._offset(self._session) if self._session else None
        if offset is None:
            offset = self._begin()
        if self._session is None:
            return self._done("mounted")
        self._read_from(self._session, offset)
        self._send(self._session, offset)
        return self._done("sent")

    def _begin(self) -> int:
        """Have a session, and the offset at which it stands; no session where the blob was mounted instead."""
        opened: Session | None = None
        for name in self._mount_from if self._digest else ():
            if opened:
                opened.cancel()
            opened = Session.open(self._client, self._target, self._digest, name)
            if opened is None:
                return 0
        if self._slot and (entry := self._slot.read()):
            with contextlib.ExitStack() as unwanted:
                if opened:
                    unwanted.callback(opened.cancel)
                if offset := self._take_up(entry):
                    return offset
                unwanted.pop_all()
            self._slot.forget()
        self._session = opened or Session.open(self._client, self._target)
        return 0

    def _take_up(self, entry: Entry) -> int | None:
        """Go on with what another process began; gives the offset, None where that cannot be."""
        with contextlib.suppress(RemoteError):
            self._session = Session.of_earlier(self._client, self._target, entry.location, entry.offset_bytes)
            if offset := self._offset(self._session):
                self._session.base_bytes = offset
                self._on_note(
                    f"{self._target.name}: an upload that was cut goes on at {offset // _MIB} "
                    f"of {self._blob.size_bytes // _MIB} MiB"
                )
                return offset
        return None

    def _offset(self, session: Session) -> int | None:
        """How far a session has come; None when there is nothing to go on with, which is said."""
        offset = session.offset(self._blob.size_bytes)
        if offset is None:
            if session.reached_bytes > _MIB:  # else there is nothing to speak of
                self._on_note(
                    f"{self._target.name}: the registry does not keep an upload that was cut: "
                    f"the whole layer of {self._blob.size_bytes // _MIB} MiB is sent again"
                )
            self._forget_session()
            return None
        self._best_bytes = max(self._best_bytes, offset)
        return offset

    def _forget_session(self) -> None:
        self._session = None
        if self._slot:
            self._slot.forget()

    def _end_session(self) -> None:
        if self._session:  # else what an earlier run left is there for a later one
            self._session.cancel()
            self._forget_session()

    # Bytes

    def _send(self, session: Session, offset: int) -> None:
        """Send what the session lacks, and commit."""
        size = self._blob.size_bytes
        strategy = STRATEGIES.of(self._target.registry)
        chunk_bytes = max(strategy.chunk_bytes or size, session.least_chunk_bytes)
        if self._digest is None and strategy.chunk_bytes is None:
            # Every registry takes one stream whose digest is known beforehand, not every one another.
            self._digest = self._hashed()
        if self._digest and (strategy.chunk_bytes is None or (offset == 0 and size <= chunk_bytes)):
            response = self._request(session, "PUT", offset, size, session.commit_url(self._digest))
            if response.status == 413 and STRATEGIES.stream_refused(self._target.registry, strategy, size):
                discard(response)
                raise _AnotherWay
            self._created(session, response, self._digest)
            return
        while offset < size:
            end = min(offset + chunk_bytes, size)
            self._patch(session, strategy, offset, end)
            offset = end
        self._digest = self._outgoing.finish()
        response = self._request(session, "PUT", size, size, session.commit_url(self._digest))
        self._created(session, response, self._digest)

    def _patch(self, session: Session, strategy: Strategy, start: int, end: int) -> None:
        """Send one chunk, and see that the registry counts it as we do."""
        response = self._request(session, "PATCH", start, end, session.url)
        if response.status in _CHUNK_REFUSED:
            self._refused(session, strategy, response, start, end)
        expect(response, self._target.name, 200, 201, 202, 204)
        discard(response)
        session.follow(response)
        held = held_bytes(response)
        if held is not None and held > end:
            # It counts otherwise, or has put the chunk elsewhere: chunks are not to be trusted to it.
            if not STRATEGIES.chunk_refused(self._target.registry, strategy, too_large=False):
                raise RemoteError(f"{self._target.name}: the registry has {held} of {end} bytes that it was sent")
            raise _AnotherWay
        if held is not None and held < end:
            raise Unavailable(f"{self._target.name}: the registry has {held} of the {end} bytes that it was sent")
        self._best_bytes = max(self._best_bytes, end)

    def _refused(self, session: Session, strategy: Strategy, response: BaseHTTPResponse, start: int, end: int) -> None:
        """Take another way after a chunk was refused, or ask the session once; else raise what the registry says."""
        code, error = refusal(response, self._target.name)
        once_more = response.status in {400, 404, 416} and self._asked_again_at < start and start > 0
        if code == "BLOB_UPLOAD_UNKNOWN" or once_more:
            # Sessions expire, and one that has another offset may be gone on with from there.
            self._asked_again_at = start
            raise Unavailable(error.message)
        too_large = response.status == 413 and end - start > session.least_chunk_bytes
        if not STRATEGIES.chunk_refused(self._target.registry, strategy, too_large=too_large):
            raise error
        raise _AnotherWay

    def _request(self, session: Session, method: str, start: int, end: int, url: str) -> BaseHTTPResponse:
        """Send the bytes from `start` to `end`, noted beforehand. Raises Renewed, Unavailable."""
        headers = {"Content-Length": str(end - start)}
        if start < end:
            headers["Content-Type"] = "application/octet-stream"
            if start or method == "PATCH":
                headers["Content-Range"] = f"{start}-{end - 1}"

        def body() -> Iterator[memoryview]:
            for piece in self._outgoing.take(end - start):
                yield piece
                self._sent_bytes += len(piece)
                session.reached_bytes = self._outgoing.position
                self._tell(session)

        session.bound_bytes = end
        if self._slot:
            self._slot.write(Entry(session.url, end))
        return self._client.request(
            self._target,
            method,
            url,
            headers=headers,
            body=body if start < end else None,
            push=True,
            patient=False,
            resend=start == end,
            # Only the commit makes a registry touch all of it.
            answer_seconds=_ANSWER_SECONDS + _ANSWER_SECONDS_PER_GIB * (end if method == "PUT" else end - start) / _GIB,
        )

    def _read_from(self, session: Session, offset: int) -> None:
        """Stand at `offset`: chunks cannot be read backwards."""
        if self._outgoing.position > offset:
            self._outgoing.close()
            self._outgoing = Outgoing(self._blob, self._target.name, self._client.stop)
        self._outgoing.skip_to(offset)
        self._tell(session)

    def _tell(self, session: Session) -> None:
        told = max(0, self._outgoing.position - session.base_bytes)
        if told != self._told_bytes:
            self._on_bytes(told - self._told_bytes)
            self._told_bytes = told

    def _hashed(self) -> Digest:
        """Read the blob once for its digest alone."""
        reading = Outgoing(self._blob, self._target.name, self._client.stop)
        try:
            reading.skip_to(self._blob.size_bytes)
            return reading.finish()
        finally:
            reading.close()

    # Answers

    def _exists(self, digest: Digest) -> bool:
        response = self._client.request(self._target, "HEAD", f"blobs/{digest}", push=True)
        discard(response)
        if response.status != 404:
            expect(response, self._target.name, 200)
        return response.status == 200

    def _created(self, session: Session, response: BaseHTTPResponse, digest: Digest) -> None:
        if response.status not in {201, 202, 204}:
            code, error = refusal(response, self._target.name)
            if response.status == 404 and code == "BLOB_UPLOAD_UNKNOWN":
                raise Unavailable(error.message)  # sessions expire; a new one may do
            if isinstance(error, IntegrityError) and session.went_on:
                self._on_note(f"{self._target.name}: what the registry had kept of a layer was not that layer")
                raise _AnotherWay
            raise error
        discard(response)
        if response.headers.get("Docker-Content-Digest", digest.text) != digest.text:
            raise IntegrityError(f"{self._target.name} stored a blob under another digest than {digest}")

    def _done(self, how: Literal["exists", "mounted", "sent"]) -> PushedBlob:
        # Without a digest nothing is found, mounted or committed.
        return PushedBlob(cast("Digest", self._digest), self._blob.size_bytes, self._sent_bytes, how)
