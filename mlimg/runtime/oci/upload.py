"""One blob on its way into a repository: found there, mounted from another, or sent as the registry takes it.

`strategy` says whether in chunks or in one stream. What is cut goes on from the offset that the registry names; a
`Slot` of the journal lets another process do so.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import quote, urlsplit

from urllib3.response import BaseHTTPResponse

from mlimg.runtime.descriptor import Blob, OnBytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    CredentialsError,
    IntegrityError,
    LimitError,
    MlimgError,
    ModelError,
    RemoteError,
    Stopped,
    printable,
)
from mlimg.runtime.oci.client import Client, Renewed, expect, refusal
from mlimg.runtime.oci.journal import Entry, Slot
from mlimg.runtime.oci.outgoing import Outgoing
from mlimg.runtime.oci.strategy import STRATEGIES
from mlimg.runtime.oci.transport import Unavailable, discard, parse_url
from mlimg.runtime.reference import ImageReference

# After the last byte a registry may copy the blob to its store before it answers.
_ANSWER_SECONDS: Final = 60.0
_ANSWER_SECONDS_PER_GIB: Final = 30.0
_GIB: Final = 1024**3
_MIB: Final = 1024**2
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")
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
        self._session = ""  # where it goes on, "" without one
        self._bound_bytes = 0  # the session can have been sent no more
        self._reached_bytes = 0  # and has been sent so many
        self._smallest_chunk_bytes = 0  # as the session asks for
        self._went_on = False  # the session has bytes that this reading of the blob did not send
        self._base_bytes = 0  # what an earlier process sent
        self._told_bytes = 0
        self._sent_bytes = 0
        self._best_bytes = 0  # the furthest that any session has come
        self._renewed_at = self._asked_again_at = -1

    def run(self) -> PushedBlob:
        """Bring the blob there. Raises as `registry.Registry.push_blob`."""
        try:
            pushed = self._push()
        except BaseException as error:
            self._leave(error)
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
                self._give_up_session()
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
            self._give_up_session()
            return self._done("sent" if self._sent_bytes else "exists")
        offset = self._offset() if self._session else None
        if offset is None:
            offset = self._begin()
        if offset is None:
            return self._done("mounted")
        self._read_from(offset)
        self._send(offset)
        return self._done("sent")

    # Sessions

    def _begin(self) -> int | None:
        """Have a session, and the offset at which it stands; None where the blob was mounted instead."""
        if self._digest and self._mount_from and self._mount(self._digest):
            return None
        if self._slot and (entry := self._slot.read()):
            opened, smallest = self._session, self._smallest_chunk_bytes
            with contextlib.suppress(RemoteError):
                self._session = session_url(self._client, self._target, entry.location)
                self._bound_bytes = self._reached_bytes = entry.offset_bytes
                offset = self._offset()
                if offset is not None:
                    self._cancel(opened)
                    self._base_bytes, self._went_on = offset, True
                    self._on_note(
                        f"{self._target.name}: an upload that was cut goes on at {offset // _MIB} "
                        f"of {self._blob.size_bytes // _MIB} MiB"
                    )
                    return offset
            self._forget_session()
            self._session, self._smallest_chunk_bytes = opened, smallest
        if not self._session:
            self._open("")
        return 0

    def _offset(self) -> int | None:
        """Ask how far the session has come; None when there is nothing to go on with, and then it is given up."""
        response = self._client.request(self._target, "GET", self._session, push=True, patient=False)
        discard(response)
        held = _held_bytes(response) if response.status in {200, 202, 204} else None
        if held is not None and self._bound_bytes == 0:
            return 0  # nothing was sent: `0-0` cannot mean a byte
        # `0-0` is said of one byte and of none, and more than was sent is not this blob.
        if held is not None and 1 < held <= min(self._bound_bytes, self._blob.size_bytes):
            self._session = self._moved(response)
            self._went_on = True
            self._best_bytes = max(self._best_bytes, held)
            return held
        if self._reached_bytes > _MIB:  # else there is nothing to speak of
            self._on_note(
                f"{self._target.name}: the registry does not keep an upload that was cut: "
                f"the whole layer of {self._blob.size_bytes // _MIB} MiB is sent again"
            )
        if response.status != 404:
            self._cancel(self._session)
        self._forget_session()
        return None

    def _mount(self, digest: Digest) -> bool:
        """Try each repository. Without success the session of the last try is there."""
        for name in self._mount_from:
            self._cancel(self._session)
            if not self._open(f"?mount={quote(digest.text)}&from={quote(name)}", also_pull=(name,)):
                return True
        return False

    def _open(self, query: str, also_pull: Sequence[str] = ()) -> bool:
        """Open a session; False where the mount in `query` succeeded instead."""
        response = self._client.request(
            self._target,
            "POST",
            f"blobs/uploads/{query}",
            headers={"Content-Length": "0"},
            push=True,
            also_pull=also_pull,
        )
        expect(response, self._target.name, 201, 202)
        discard(response)
        self._forget_session()
        if response.status == 201 and query:
            return False
        self._session = session_url(self._client, self._target, response.headers.get("Location", ""))
        asked = response.headers.get("OCI-Chunk-Min-Length", "")
        self._smallest_chunk_bytes = int(asked[:18]) if asked.isascii() and asked.isdigit() else 0
        return True

    def _forget_session(self) -> None:
        self._session = ""
        self._bound_bytes = self._reached_bytes = self._base_bytes = self._smallest_chunk_bytes = 0
        self._went_on = False
        if self._slot:
            self._slot.forget()

    def _give_up_session(self) -> None:
        self._cancel(self._session)
        self._forget_session()

    def _leave(self, error: BaseException) -> None:
        """Leave a session behind that the next run can take up, and no other."""
        if not self._session:
            return  # what an earlier run left is there for a later one
        hopeless = isinstance(error, (ModelError, IntegrityError, RemoteError, LimitError))
        if hopeless or self._slot is None or not self._bound_bytes:
            self._give_up_session()

    def _cancel(self, session: str) -> None:
        """End a session, also when everything else has been told to stop."""
        if not session:
            return
        with contextlib.suppress(MlimgError, Unavailable, Stopped):
            response = self._client.request(
                self._target, "DELETE", session, push=True, patient=False, answer_seconds=10, heed_stop=False
            )
            discard(response)

    # Bytes

    def _send(self, offset: int) -> None:
        """Send what the session lacks, and commit."""
        size = self._blob.size_bytes
        strategy = STRATEGIES.of(self._target.registry)
        chunk = max(strategy.chunk_bytes or size, self._smallest_chunk_bytes)
        if self._digest is None and strategy.chunk_bytes is None:
            # Every registry takes one stream whose digest is known beforehand, not every one another.
            self._digest = self._hashed()
        if self._digest and (strategy.chunk_bytes is None or (offset == 0 and size <= chunk)):
            response = self._put(self._digest, offset)
            if response.status == 413 and STRATEGIES.stream_refused(self._target.registry, strategy, size):
                discard(response)
                raise _AnotherWay
            self._created(response, self._digest)
            return
        while offset < size:
            offset = self._patch(offset, min(offset + chunk, size), chunk)
        self._digest = self._outgoing.finish()
        self._created(self._put(self._digest, size), self._digest)

    def _put(self, digest: Digest, offset: int) -> BaseHTTPResponse:
        """Send what is left as one stream that ends the session."""
        size = self._blob.size_bytes
        url = f"{self._session}{'&' if '?' in self._session else '?'}digest={quote(digest.text)}"
        headers = {"Content-Length": "0"}
        if offset == size:
            return self._request("PUT", url, headers, size)
        headers = {"Content-Length": str(size - offset), "Content-Type": "application/octet-stream"}
        if offset:
            headers["Content-Range"] = f"{offset}-{size - 1}"
        return self._request("PUT", url, headers, size, offset)

    def _patch(self, start: int, end: int, chunk_bytes: int) -> int:
        """Send one chunk; gives the offset at which the session stands then, which is `end`."""
        strategy = STRATEGIES.of(self._target.registry)
        headers = {
            "Content-Length": str(end - start),
            "Content-Range": f"{start}-{end - 1}",
            "Content-Type": "application/octet-stream",
        }
        response = self._request("PATCH", self._session, headers, end, start)
        if response.status in _CHUNK_REFUSED:
            self._refused(response, start, chunk_bytes)
        expect(response, self._target.name, 200, 201, 202, 204)
        discard(response)
        self._session = self._moved(response)
        held = _held_bytes(response)
        if held is not None and held > end:
            # It counts otherwise, or has put the chunk elsewhere: chunks are not to be trusted to it.
            if not STRATEGIES.chunk_refused(self._target.registry, strategy, too_large=False):
                raise RemoteError(f"{self._target.name}: the registry has {held} of {end} bytes that it was sent")
            raise _AnotherWay
        if held is not None and held < end:
            raise Unavailable(f"{self._target.name}: the registry has {held} of the {end} bytes that it was sent")
        self._best_bytes = max(self._best_bytes, end)
        return end

    def _refused(self, response: BaseHTTPResponse, start: int, chunk_bytes: int) -> None:
        """Take another way after a chunk was refused, or ask the session once; else raise what the registry says."""
        code, error = refusal(response, self._target.name)
        once_more = response.status in {400, 404, 416} and self._asked_again_at < start and start > 0
        if code == "BLOB_UPLOAD_UNKNOWN" or once_more:
            # Sessions expire, and one that has another offset may be gone on with from there.
            self._asked_again_at = start
            raise Unavailable(error.message)
        registry = self._target.registry
        strategy = STRATEGIES.of(registry)
        too_large = response.status == 413 and chunk_bytes > self._smallest_chunk_bytes
        if not STRATEGIES.chunk_refused(registry, strategy, too_large=too_large):
            raise error
        raise _AnotherWay

    def _request(
        self, method: str, url: str, headers: dict[str, str], end: int, start: int | None = None
    ) -> BaseHTTPResponse:
        """Send the bytes from `start` on, as many as `Content-Length` says; none without `start`."""
        length = int(headers["Content-Length"])

        def body() -> Iterator[memoryview]:
            for piece in self._outgoing.take(length):
                yield piece
                self._sent_bytes += len(piece)
                self._reached_bytes = self._outgoing.position
                self._tell(self._outgoing.position)

        self._bound_bytes = end
        if self._slot:
            self._slot.write(Entry(self._session, end))
        return self._client.request(
            self._target,
            method,
            url,
            headers=headers,
            body=None if start is None else body,
            push=True,
            patient=False,
            resend=start is None,
            # Only the commit makes a registry touch all of it.
            answer_seconds=_ANSWER_SECONDS + _ANSWER_SECONDS_PER_GIB * (end if method == "PUT" else length) / _GIB,
        )

    def _read_from(self, offset: int) -> None:
        """Stand at `offset`: chunks cannot be read backwards."""
        if self._outgoing.position > offset:
            self._outgoing.close()
            self._outgoing = Outgoing(self._blob, self._target.name, self._client.stop)
        self._outgoing.skip_to(offset)
        self._tell(offset)

    def _tell(self, position: int) -> None:
        told = max(0, position - self._base_bytes)
        if told != self._told_bytes:
            self._on_bytes(told - self._told_bytes)
            self._told_bytes = told

    def _hashed(self) -> Digest:
        """Read the blob once for its digest alone."""
        sha256 = hashlib.sha256()
        for chunk in self._blob.chunks():
            if self._client.stop.is_set():
                raise Stopped
            sha256.update(chunk)
        return Digest(f"sha256:{sha256.hexdigest()}")

    # Answers

    def _exists(self, digest: Digest) -> bool:
        response = self._client.request(self._target, "HEAD", f"blobs/{digest}", push=True)
        discard(response)
        if response.status != 404:
            expect(response, self._target.name, 200)
        return response.status == 200

    def _created(self, response: BaseHTTPResponse, digest: Digest) -> None:
        if response.status not in {201, 202, 204}:
            code, error = refusal(response, self._target.name)
            if response.status == 404 and code == "BLOB_UPLOAD_UNKNOWN":
                raise Unavailable(error.message)  # sessions expire; a new one may do
            if isinstance(error, IntegrityError) and self._went_on:
                self._on_note(f"{self._target.name}: what the registry had kept of a layer was not that layer")
                raise _AnotherWay
            raise error
        discard(response)
        if response.headers.get("Docker-Content-Digest", digest.text) != digest.text:
            raise IntegrityError(f"{self._target.name} stored a blob under another digest than {digest}")

    def _moved(self, response: BaseHTTPResponse) -> str:
        """Where the session goes on after an answer."""
        location = response.headers.get("Location", "")
        return session_url(self._client, self._target, location) if location else self._session

    def _done(self, how: Literal["exists", "mounted", "sent"]) -> PushedBlob:
        # Without a digest nothing is found, mounted or committed.
        return PushedBlob(cast("Digest", self._digest), self._blob.size_bytes, self._sent_bytes, how)


def session_url(client: Client, target: ImageReference, location: str) -> str:
    """Where a session is. Raises RemoteError unless that is the registry: credentials and the bytes go there."""
    origin = urlsplit(client.origin(target))
    url = parse_url(location, origin.geturl())
    if url.netloc == origin.netloc and url.scheme == "http":
        url = url._replace(scheme=origin.scheme)  # a registry behind a TLS proxy often does not know of it
    if (url.scheme, url.netloc) != (origin.scheme, origin.netloc) or not location:
        raise RemoteError(f"{origin.netloc} sends an upload to {printable(url.netloc)[:200]}: not followed")
    return url.geturl()


def _held_bytes(response: BaseHTTPResponse) -> int | None:
    """How many bytes a session has, by its `Range`; None where the registry does not tell."""
    match = _RANGE.fullmatch(response.headers.get("Range", ""))
    return int(match[1]) + 1 if match else None
