"""One blob on its way into a repository: found there, mounted from another repository, or sent as one stream.

One streamed PUT is what every registry takes (some refuse chunks, some refuse more than one), so a blob whose digest
is known goes that way. A blob that is hashed on its way goes by one PATCH.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote, urlsplit

from urllib3.response import BaseHTTPResponse

from mlimg.runtime.descriptor import Blob, OnBytes
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, MlimgError, RemoteError, Stopped, printable
from mlimg.runtime.oci.client import Client, expect, refusal
from mlimg.runtime.oci.transport import Unavailable, discard, parse_url
from mlimg.runtime.reference import ImageReference

# After the last byte a registry may copy the blob to its store before it answers.
_ANSWER_SECONDS: Final = 60.0
_ANSWER_SECONDS_PER_GIB: Final = 30.0
_GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class PushedBlob:
    """How a blob came into a repository. `sent_bytes` counts what failed attempts sent, too."""

    digest: Digest
    size_bytes: int
    sent_bytes: int
    how: Literal["exists", "mounted", "sent"]


class _NoPatch(Exception):  # noqa: N818 (a way that this registry does not offer)
    """The registry takes no PATCH of this size."""


class Upload:
    """The way of one blob; `run` goes it."""

    def __init__(
        self, client: Client, target: ImageReference, blob: Blob, mount_from: Sequence[str], on_bytes: OnBytes
    ) -> None:
        self._client = client
        self._target = target
        self._blob = blob
        self._mount_from = [name for name in mount_from if name != target.repository]
        self._on_bytes = on_bytes
        self._sent_bytes = 0
        self._attempt_bytes = 0
        self._sha256 = hashlib.sha256()

    def run(self) -> PushedBlob:
        """Bring the blob there. Raises as `registry.Registry.push_blob`."""
        if self._blob.digest is not None:
            return self._push(self._blob.digest)
        try:
            return self._push_hashing()
        except (Unavailable, _NoPatch):
            # Reading it once more gives the digest, and with it a way that can ask whether the blob has arrived.
            sha256 = hashlib.sha256()
            for chunk in self._blob.chunks():
                sha256.update(chunk)
            return self._push(Digest(f"sha256:{sha256.hexdigest()}"))

    def _push(self, digest: Digest) -> PushedBlob:
        return self._client.patience().run(lambda: self._push_once(digest))

    def _push_once(self, digest: Digest) -> PushedBlob:
        if self._exists(digest):  # also what tells of a commit whose answer was lost
            return self._done(digest, "sent" if self._sent_bytes else "exists")
        session = self._mount(digest) if self._mount_from else self._open("")
        if session is None:
            return self._done(digest, "mounted")
        with self._cancelling(session):
            self._created(self._send("PUT", _with_digest(session, digest), {}), digest)
        return self._done(digest, "sent")

    def _push_hashing(self) -> PushedBlob:
        size = self._blob.size_bytes
        session = self._open("")
        with self._cancelling(session):
            headers = {"Content-Range": f"0-{size - 1}"} if size else {}
            response = self._send("PATCH", session, headers)
            if response.status in {400, 404, 405, 413, 416, 501}:
                discard(response)
                raise _NoPatch
            expect(response, self._target.name, 201, 202, 204)
            discard(response)
            session = self._location(response)
            digest = Digest(f"sha256:{self._sha256.hexdigest()}")
            url = _with_digest(session, digest)
            headers = {"Content-Length": "0"}
            answer = self._client.request(self._target, "PUT", url, headers=headers, push=True, patient=False)
            self._created(answer, digest)
        return self._done(digest, "sent")

    def _exists(self, digest: Digest) -> bool:
        response = self._client.request(self._target, "HEAD", f"blobs/{digest}", push=True)
        discard(response)
        if response.status != 404:
            expect(response, self._target.name, 200)
        return response.status == 200

    def _mount(self, digest: Digest) -> str | None:
        """Try each repository; None when one had the blob, else the session of the last try."""
        session = ""
        for name in self._mount_from:
            if session:
                self._cancel(session)
            opened = self._open(f"?mount={quote(digest.text)}&from={quote(name)}", also_pull=(name,))
            if not opened:
                return None
            session = opened
        return session

    def _open(self, query: str, also_pull: Sequence[str] = ()) -> str:
        """Open a session and return its URL; "" where the mount in `query` succeeded."""
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
        return "" if response.status == 201 and query else self._location(response)

    def _send(self, method: str, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        size = self._blob.size_bytes
        return self._client.request(
            self._target,
            method,
            url,
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream", **headers},
            body=self._chunks,
            push=True,
            patient=False,
            answer_seconds=_ANSWER_SECONDS + _ANSWER_SECONDS_PER_GIB * size / _GIB,
        )

    def _chunks(self) -> Iterator[bytes | memoryview]:
        """The blob's bytes, counted; never more or fewer than announced."""
        self._on_bytes(-self._attempt_bytes)  # this attempt starts over
        self._attempt_bytes = 0
        self._sha256 = hashlib.sha256()
        for chunk in self._blob.chunks():
            size = len(chunk)
            if self._attempt_bytes + size > self._blob.size_bytes:
                break
            if self._blob.digest is None:
                self._sha256.update(chunk)
            yield chunk
            self._attempt_bytes += size
            self._sent_bytes += size
            self._on_bytes(size)
        else:
            if self._attempt_bytes == self._blob.size_bytes:
                return
        raise IntegrityError(f"a blob for {self._target.name} is not as long as announced while it is sent")

    def _created(self, response: BaseHTTPResponse, digest: Digest) -> None:
        if response.status not in {201, 202, 204}:
            code, error = refusal(response, self._target.name)
            if response.status == 404 and code == "BLOB_UPLOAD_UNKNOWN":
                raise Unavailable(error.message)  # sessions expire; a new one may do
            raise error
        discard(response)
        if response.headers.get("Docker-Content-Digest", digest.text) != digest.text:
            raise IntegrityError(f"{self._target.name} stored a blob under another digest than {digest}")

    def _location(self, response: BaseHTTPResponse) -> str:
        """Where a session goes on: at the registry itself, as the credentials and the model's bytes go there."""
        origin = urlsplit(self._client.origin(self._target))
        url = parse_url(response.headers.get("Location", ""), origin.geturl())
        if url.netloc == origin.netloc and url.scheme == "http":
            url = url._replace(scheme=origin.scheme)  # a registry behind a TLS proxy often does not know of it
        if (url.scheme, url.netloc) != (origin.scheme, origin.netloc) or not response.headers.get("Location"):
            raise RemoteError(f"{origin.netloc} sends an upload to {printable(url.netloc)[:200]}: not followed")
        return url.geturl()

    @contextlib.contextmanager
    def _cancelling(self, session: str) -> Iterator[None]:
        """Leave no half an upload behind in the registry."""
        try:
            yield
        except BaseException:
            self._cancel(session)
            raise

    def _cancel(self, session: str) -> None:
        """End a session, also when everything else has been told to stop."""
        with contextlib.suppress(MlimgError, Unavailable, Stopped):
            response = self._client.request(
                self._target, "DELETE", session, push=True, patient=False, answer_seconds=10, heed_stop=False
            )
            discard(response)

    def _done(self, digest: Digest, how: Literal["exists", "mounted", "sent"]) -> PushedBlob:
        return PushedBlob(digest, self._blob.size_bytes, self._sent_bytes, how)


def _with_digest(session: str, digest: Digest) -> str:
    return f"{session}{'&' if '?' in session else '?'}digest={quote(digest.text)}"
