"""An upload that is under way in a registry: opened, asked how far it has come, followed, cancelled.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pushing-blobs
"""

import contextlib
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlsplit

from urllib3.response import BaseHTTPResponse

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import MlimgError, RemoteError, Stopped, printable
from mlimg.runtime.oci.client import Client, expect
from mlimg.runtime.oci.transport import Unavailable, discard, parse_url
from mlimg.runtime.reference import ImageReference

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")


@dataclass(slots=True)
class Session:
    """One upload. Its methods raise RemoteError, and what `Client.request` raises."""

    client: Client
    target: ImageReference
    url: str  # the registry changes it with every answer
    least_chunk_bytes: int = 0  # what the registry asks for
    bound_bytes: int = 0  # it can have been sent no more
    reached_bytes: int = 0  # and was sent so many
    base_bytes: int = 0  # so many by an earlier process
    proven: bool = True  # to be an upload: what is noted on a disk may name anything
    went_on: bool = False  # whether it was taken up after a cut: it may hold what we did not mean

    @classmethod
    def open(cls, client: Client, target: ImageReference, mount: Digest | None = None, source: str = "") -> Self | None:
        """A new session; None where the registry mounted the blob from the repository `source` instead."""
        query = f"?mount={quote(mount.text)}&from={quote(source)}" if mount else ""
        response = client.request(
            target,
            "POST",
            f"blobs/uploads/{query}",
            headers={"Content-Length": "0"},
            push=True,
            also_pull=(source,) if mount else (),
        )
        expect(response, target.name, 201, 202)
        discard(response)
        if response.status == 201 and mount:
            return None
        asked = response.headers.get("OCI-Chunk-Min-Length", "")
        least = int(asked[:18]) if asked.isascii() and asked.isdigit() else 0
        return cls(client, target, _at_registry(client, target, response.headers.get("Location", "")), least)

    @classmethod
    def of_earlier(cls, client: Client, target: ImageReference, location: str, bound_bytes: int) -> Self:
        """The session of another process, which sent at most so many bytes."""
        url = _at_registry(client, target, location)
        return cls(client, target, url, bound_bytes=bound_bytes, reached_bytes=bound_bytes, proven=False)

    def offset(self, size_bytes: int) -> int | None:
        """Ask how much of a blob of that size the registry has; None for what cannot be gone on with: it is cancelled.

        Raises Unavailable.
        """
        response = self.client.request(self.target, "GET", self.url, push=True, patient=False)
        discard(response)
        held = held_bytes(response) if response.status in {200, 202, 204} else None
        self.proven = self.proven or held is not None
        if held is not None and self.bound_bytes == 0:
            return 0  # nothing was sent: `0-0` cannot mean a byte
        # `0-0` is said of one byte and of none, and more than was sent is not this blob.
        if held is not None and 1 < held <= min(self.bound_bytes, size_bytes):
            self.follow(response)
            self.went_on = True
            return held
        if response.status != 404:
            self.cancel()
        return None

    def follow(self, response: BaseHTTPResponse) -> None:
        """Go on where an answer says."""
        if location := response.headers.get("Location", ""):
            self.url = _at_registry(self.client, self.target, location)

    def commit_url(self, digest: Digest) -> str:
        """Where a PUT ends the session."""
        return f"{self.url}{'&' if '?' in self.url else '?'}digest={quote(digest.text)}"

    def cancel(self) -> None:
        """End it, also when everything else has been told to stop; raises nothing."""
        if not self.proven:
            return
        with contextlib.suppress(MlimgError, Unavailable, Stopped):
            response = self.client.request(
                self.target, "DELETE", self.url, push=True, patient=False, answer_seconds=10, heed_stop=False
            )
            discard(response)


def held_bytes(response: BaseHTTPResponse) -> int | None:
    """How many bytes a session has, by the `Range` of an answer; None where the registry does not tell."""
    match = _RANGE.fullmatch(response.headers.get("Range", ""))
    return int(match[1]) + 1 if match else None


def _at_registry(client: Client, target: ImageReference, location: str) -> str:
    """A session is at the registry itself, as credentials and the model's bytes go there. Raises RemoteError."""
    origin = urlsplit(client.origin(target))
    url = parse_url(location, origin.geturl())
    if url.netloc == origin.netloc and url.scheme == "http":
        url = url._replace(scheme=origin.scheme)  # a registry behind a TLS proxy often does not know of it
    if (url.scheme, url.netloc) != (origin.scheme, origin.netloc) or not location:
        raise RemoteError(f"{origin.netloc} sends an upload to {printable(url.netloc)[:200]}: not followed")
    return url.geturl()
