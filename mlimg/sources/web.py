"""A model of one file behind an https address, and the reading of web addresses that other sources share.

Headers with credentials go to one origin. Redirects are followed by hand: without those headers to any other origin,
never from TLS to plain text, and never to a service that gives machines their credentials.
"""

import threading
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from urllib3 import exceptions
from urllib3.response import BaseHTTPResponse

from mlimg.runtime.errors import (
    CredentialsError,
    IntegrityError,
    MlimgError,
    RemoteError,
    RemoteTemporaryError,
    printable,
)
from mlimg.runtime.hosts import is_loopback, serves_metadata
from mlimg.runtime.oci.transport import (
    MAX_REDIRECTS,
    REDIRECTS,
    Patience,
    Transport,
    Unavailable,
    bytes_before,
    discard,
    not_followed,
    parse_url,
    read_capped,
    read_pieces,
    redirected,
)
from mlimg.sources.address import web_file
from mlimg.sources.ranged import Attempt
from mlimg.sources.remote import RemoteEntry, RemoteSource, Wanted, listed

if TYPE_CHECKING:
    from mlimg.runtime.oci import Access


def open_address(wanted: Wanted, access: "Access") -> RemoteSource:
    """List the one file. Raises what `open_remote` raises."""
    url = wanted.address
    place = Web(access, origin_of(url))
    size_bytes = place.size(url)
    fingerprint = wanted.sha256.text if wanted.sha256 else None
    entry = RemoteEntry(web_file(url), size_bytes, place.reader(url, size_bytes), wanted.sha256, fingerprint)
    return listed(wanted, access, [entry], {"uri": url})


def origin_of(url: str) -> str:
    """Scheme and host of an address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def check_origin(what: str, url: str) -> str:
    """Return the origin of a server that the environment names as `what`. Raises RemoteError for one not to trust."""
    parts = parse_url(url)
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username or serves_metadata(parts.netloc):
        raise RemoteError(f"{what} is not the https address of a server, without credentials")
    if parts.scheme == "http" and not is_loopback(parts.netloc):
        raise RemoteError(f"{what} speaks plain http, which is for this machine itself: write https")
    return origin_of(url)


class Web:
    """Files behind addresses. `headers` go to `origin` and nowhere else. Safe to use from several threads."""

    def __init__(self, access: "Access", origin: str, headers: Mapping[str, str] | None = None) -> None:
        self._access = access
        self._origin = origin
        self._headers = dict(headers or {})
        self._transport = Transport(access)

    def size(self, url: str) -> int:
        """The length of a file. Raises RemoteError where the server does not tell it."""
        return Patience(self._access, threading.Event()).run(lambda: self._size(url))

    def get(self, url: str, limit_bytes: int) -> bytes:
        """A small answer, whole. Raises LimitError."""

        def ask() -> bytes:
            response = self._ask(url, {})
            _expect(response, url, 200)
            return read_capped(response, limit_bytes, _shown(url))

        return Patience(self._access, threading.Event()).run(ask)

    def reader(self, url: str, size_bytes: int) -> Attempt:
        """What reads a file of that length; a server without ranges sends what is before the offset, too."""
        return lambda offset: self._read(url, offset, size_bytes)

    def _size(self, url: str) -> int:
        response = self._ask(url, {"Range": "bytes=0-0"})  # HEAD is often forbidden, and signed addresses refuse it
        whole = _whole(response)
        if response.status == 416 and whole == 0:
            discard(response)
            return 0
        _expect(response, url, 200, 206)
        response.close()
        if whole is None:
            raise RemoteError(f"{_shown(url)}: the server does not tell how long the file is")
        return whole

    def _read(self, url: str, offset: int, size_bytes: int) -> Generator[bytes, None, None]:
        try:
            response = self._ask(url, {"Range": f"bytes={offset}-"} if offset else {})
        except Unavailable as failure:
            raise RemoteTemporaryError(str(failure)) from failure
        try:
            _expect(response, url, 200, 206)
            whole = _whole(response)
            if whole not in {None, size_bytes}:
                raise IntegrityError(f"{_shown(url)} has {whole} bytes now, and had {size_bytes} when it was listed")
            before = bytes_before(response, offset)
            if before is None:
                raise RemoteError(f"{_shown(url)}: the server sends another part than it was asked for")
            yield from read_pieces(response, self._transport.stop, skip_bytes=before)
            response.release_conn()
        except exceptions.HTTPError as error:
            raise RemoteTemporaryError(f"{_shown(url)}: the connection broke while it was read") from error
        finally:
            response.close()

    def _ask(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """One attempt, redirects followed. Raises Unavailable, RemoteError."""
        first = url
        for _ in range(MAX_REDIRECTS + 1):
            own = self._headers if origin_of(url) == self._origin else {}
            response = self._transport.once("GET", url, {**headers, **own})
            if response.status not in REDIRECTS:
                return response
            parts = redirected(response, url)
            if parts.username:
                raise not_followed(urlsplit(url), parts)
            url = parts.geturl()
        raise RemoteError(f"{_shown(first)} is redirected more than {MAX_REDIRECTS} times")


def _whole(response: BaseHTTPResponse) -> int | None:
    """The length of the whole file, whatever part of it comes."""
    header = "Content-Length" if response.status == 200 else "Content-Range"
    text = response.headers.get(header, "").rpartition("/")[2]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _expect(response: BaseHTTPResponse, url: str, *statuses: int) -> None:
    """Raise what an answer other than `statuses` means, and close it."""
    if response.status not in statuses:
        discard(response)
        raise refusal(_shown(url), response.status)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise RemoteError(f"{_shown(url)}: the server compresses what it was asked to send as it is")


def refusal(what: str, status: int) -> MlimgError:
    """The error for an answer that is no file."""
    if status in {401, 403, 407}:
        return CredentialsError(
            f"{what}: the server answers {status}", hint="the credentials are missing or not enough"
        )
    hint = "check the address" if status in {404, 410} else ""
    return RemoteError(f"{what}: the server answers {status}", hint=hint)


def _shown(url: str) -> str:
    """An address for people, without the query in which signatures travel."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc}{parts.path}")[:300]
