"""HTTP as registries need it: no hidden redirects, no hidden decoding, TLS never given up, every wait bounded.

Nothing here knows of credentials: whoever adds an ``Authorization`` header chooses the origin it goes to.
"""

import logging
import random
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, TypeVar, cast
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3 import exceptions
from urllib3.response import BaseHTTPResponse

from mlimg.runtime.digest import READ_SIZE_BYTES
from mlimg.runtime.errors import LimitError, LocalIOError, RemoteError, RemoteTemporaryError, Stopped, printable
from mlimg.runtime.hosts import is_loopback, serves_metadata
from mlimg.runtime.oci.credentials import CredentialSource, no_credentials

_CONNECT_SECONDS: Final = 15.0
_LONGEST_WAIT_SECONDS: Final = 60.0
TEMPORARY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_REDIRECTS: Final = 5
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# urllib3 sends under the time-out for connecting; pieces this small get through on a slow line all the same.
_PIECE_BYTES: Final = 512 * 1024
_CONNECTION: Final = re.compile(r"^HTTPS?Connection\(host='[^']*', port=\d+\): ")  # urllib3's name of one

_T = TypeVar("_T")

Body = Callable[[], Iterable[bytes | memoryview]]
"""Gives a request's body anew for each attempt."""


def _hide_queries(record: logging.LogRecord) -> bool:
    """Keep what follows a `?` out of a record: stores, and registries that redirect to them, sign addresses there."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            value.partition("?")[0] if isinstance(value, str) and "?" in value else value for value in record.args
        )
    return True


# At debug level urllib3 logs every address that it asks for.
logging.getLogger("urllib3.connectionpool").addFilter(_hide_queries)


class Unavailable(Exception):  # noqa: N818 (a state, turned into an error when patience ends)
    """One attempt failed in a way that another may not."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unwilling(Unavailable):
    """Somebody is there, and answers that it cannot be done now."""


@dataclass(frozen=True, slots=True)
class Access:
    """How registries and object stores are reached.

    `insecure` holds the ``host[:port]`` that speak plain HTTP; loopback does anyway. `environ` is what object stores
    and clouds take their settings and identities from (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``).
    """

    credentials: CredentialSource = no_credentials
    insecure: frozenset[str] = frozenset()
    ca_bundle: Path | None = None  # added to the system's roots
    attempts: int = 5
    connect_seconds: float = _CONNECT_SECONDS
    stall_seconds: float = 60.0  # how long no byte may arrive
    backoff_seconds: float = 0.5  # the first wait, doubled each time
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    def scheme(self, host: str) -> str:
        """``http`` for loopback and the registries named insecure, else ``https``."""
        return "http" if host in self.insecure or is_loopback(host) else "https"


class Patience:
    """Waits between attempts: exponential with jitter, or as the server asks, at most 60 s each."""

    def __init__(self, access: Access, stop: threading.Event) -> None:
        self._attempts_left = access.attempts
        self._delay_seconds = access.backoff_seconds
        self._stop = stop

    def run(self, attempt: Callable[[], _T]) -> _T:
        """Attempt until it is not Unavailable. Raises as `wait`, and what else the attempt raises."""
        while True:
            try:
                return attempt()
            except Unavailable as failure:
                self.wait(failure)

    def wait(self, failure: Unavailable) -> None:
        """Wait before the next attempt. Raises RemoteTemporaryError when there is none left, Stopped."""
        self._attempts_left -= 1
        if self._attempts_left <= 0:
            raise RemoteTemporaryError(str(failure)) from failure
        asked = failure.retry_after_seconds
        # Jitter, not cryptography: it keeps many clients from coming back at the same moment.
        delay = self._delay_seconds * random.uniform(0.5, 1.5) if asked is None else asked  # noqa: S311
        self._delay_seconds *= 2
        if self._stop.wait(min(delay, _LONGEST_WAIT_SECONDS)):
            raise Stopped


class Transport:
    """Sends requests. Safe to use from several threads."""

    def __init__(self, access: Access, stop: threading.Event | None = None) -> None:
        self.access = access
        self.stop = stop or threading.Event()
        self._context: ssl.SSLContext | None = None
        self._managers: dict[tuple[str, bool], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close idle connections."""
        for manager in self._managers.values():
            manager.clear()

    def send(self, method: str, url: str, headers: Mapping[str, str], body: Body | None = None) -> BaseHTTPResponse:
        """Send until the answer is not a temporary failure. Raises as `once`, RemoteTemporaryError."""
        return Patience(self.access, self.stop).run(lambda: self.once(method, url, headers, body))

    def once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None = None,
        *,
        answer_seconds: float | None = None,
        heed_stop: bool = True,
    ) -> BaseHTTPResponse:
        """Send one request and return the answer unread, redirects included.

        Raises Unavailable, RemoteError when TLS or the URL is not sound, and Stopped.
        """
        if heed_stop and self.stop.is_set():
            raise Stopped
        parts = parse_url(url)
        where = printable(f"{method} {parts.scheme}://{parts.netloc}{parts.path}")[:500]
        timeout = urllib3.Timeout(connect=self.access.connect_seconds, read=answer_seconds or self.access.stall_seconds)
        try:
            response = self._manager(parts).request(
                method,
                url,
                headers={"Accept-Encoding": "identity", "User-Agent": "mlimg", **headers},
                # The stubs know bytes alone; sockets take any buffer.
                body=None if body is None else cast("Iterable[bytes]", self._pieces(body())),
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (exceptions.SSLError, exceptions.LocationValueError) as error:
            raise _refused_connection(parts, error) from error
        except exceptions.ProxyError as error:
            if isinstance(error.original_error, exceptions.SSLError):
                raise _refused_connection(parts, error) from error
            raise Unavailable(f"{where}: the proxy cannot be reached") from error
        except exceptions.HTTPError as error:
            raise Unavailable(f"{where}: {_reason(error)}") from error
        if response.status in TEMPORARY_STATUSES:
            retry_after = _retry_after(response.headers.get("Retry-After", ""))
            discard(response)
            raise Unwilling(f"{where}: the server answers {response.status}", retry_after)
        return response

    def _pieces(self, chunks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                for start in range(0, len(view), _PIECE_BYTES):
                    if self.stop.is_set():
                        raise Stopped
                    yield view[start : start + _PIECE_BYTES]
        except OSError as error:  # else urllib3 takes it for a failure of the connection
            raise LocalIOError(f"cannot read what is to be sent: {error}") from error

    def _manager(self, parts: SplitResult) -> urllib3.PoolManager:
        proxy = proxy_for(parts)
        # Reading all of a system's certificates takes longer than asking a registry on this machine.
        by_tls = parts.scheme == "https" or proxy.startswith("https:")
        with self._lock:
            key = (proxy, by_tls)
            if key not in self._managers:
                self._managers[key] = self._new_manager(proxy, by_tls=by_tls)
            return self._managers[key]

    def _new_manager(self, proxy: str, *, by_tls: bool) -> urllib3.PoolManager:
        if self._context is None and by_tls:
            self._context = _tls_context(self.access.ca_bundle)
        if not proxy:
            return urllib3.PoolManager(num_pools=16, maxsize=8, ssl_context=self._context)
        parts = urlsplit(proxy)
        login = f"{parts.username}:{parts.password or ''}" if parts.username else None
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return urllib3.ProxyManager(
            bare,
            num_pools=16,
            maxsize=8,
            ssl_context=self._context,
            proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
        )


def read_capped(response: BaseHTTPResponse, limit_bytes: int, what: str, *, seconds: float = 60.0) -> bytes:
    """Read a small body whole. Raises LimitError when it is larger, Unavailable when it does not come in time."""
    deadline = time.monotonic() + seconds
    data = bytearray()
    try:
        while piece := response.read1(65536, decode_content=False):
            data += piece
            if len(data) > limit_bytes:
                raise LimitError(f"{what} is larger than {limit_bytes} bytes")
            if time.monotonic() > deadline:
                raise Unavailable(f"{what} did not arrive within {seconds:.0f} s")
    except exceptions.HTTPError as error:
        response.close()
        raise Unavailable(f"{what} did not arrive: {_reason(error)}") from error
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return bytes(data)


def read_pieces(
    response: BaseHTTPResponse, stop: threading.Event, *, skip_bytes: int = 0
) -> Generator[bytes, None, None]:
    """A body as it comes, without its first `skip_bytes`. Raises Stopped, and urllib3's HTTPError where it breaks."""
    while piece := response.read1(READ_SIZE_BYTES, decode_content=False):
        if stop.is_set():
            raise Stopped
        if len(piece) > skip_bytes:
            yield piece[skip_bytes:]
        skip_bytes = max(0, skip_bytes - len(piece))


def bytes_before(response: BaseHTTPResponse, offset: int) -> int | None:
    """How much of a body comes before the `offset` that was asked for; None where it is another part of the whole."""
    if response.status != 206:
        return offset
    return 0 if response.headers.get("Content-Range", "").startswith(f"bytes {offset}-") else None


def redirected(response: BaseHTTPResponse, url: str) -> SplitResult:
    """Where a redirect leads; its answer is given up.

    Raises RemoteError for a way from TLS to plain text, and to a service that gives machines their credentials.
    """
    discard(response)
    before, parts = urlsplit(url), parse_url(response.headers.get("Location", ""), url)
    plain = parts.scheme != "https" and before.scheme == "https"
    if parts.scheme not in {"http", "https"} or plain or serves_metadata(parts.netloc):
        raise not_followed(before, parts)
    return parts


def not_followed(before: SplitResult, parts: SplitResult) -> RemoteError:
    """The error for a redirect that leads where nobody goes."""
    return RemoteError(f"{before.netloc} redirects to {printable(parts.netloc)[:200]}: not followed")


def discard(response: BaseHTTPResponse) -> None:
    """Give up an answer whose body nobody wants; a short one leaves its connection to the next request."""
    try:
        read_capped(response, 65536, "an error page", seconds=5)
    except (LimitError, Unavailable):
        response.close()


def parse_url(text: str, base: str = "") -> SplitResult:
    """Read a URL that somebody sent, relative to `base`. Raises RemoteError for what is none."""
    try:
        return urlsplit(urljoin(base, text))
    except ValueError as error:
        raise RemoteError(f"`{printable(text)[:200]}` is no URL") from error


def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_bundle is not None:
        try:
            context.load_verify_locations(ca_bundle)
        except (OSError, ssl.SSLError) as error:
            raise LocalIOError(f"cannot use the CA bundle {ca_bundle}: {error}") from error
    return context


def proxy_for(parts: SplitResult) -> str:
    """The proxy that the environment names for a URL, "" for none, as for this machine and its metadata service."""
    if is_loopback(parts.netloc) or serves_metadata(parts.netloc) or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _refused_connection(parts: SplitResult, error: Exception) -> RemoteError:
    reason = _reason(error)
    if "expired" in reason or "not yet valid" in reason:
        today = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        hint = f"either the certificate's days are over or this machine's clock is wrong: it shows {today} UTC"
        return RemoteError(f"no trusted connection to {printable(parts.netloc)}: {reason}", hint=hint)
    return RemoteError(
        f"no trusted connection to {printable(parts.netloc)}: {reason}",
        hint="for a company's certificate give its bundle: --ca-bundle or MLIMG_CA_BUNDLE; "
        "for a registry that speaks plain HTTP name it in insecure_registries or MLIMG_INSECURE_REGISTRIES",
    )


def _reason(error: Exception) -> str:
    """What happened, without the object addresses and nesting that urllib3 prints."""
    text = str(error.args[-1]) if error.args else type(error).__name__
    text = text.rpartition(">: ")[2] or text
    return printable(_CONNECTION.sub("", text, count=1))[:300]


def _retry_after(text: str) -> float | None:
    if text.isascii() and text.isdigit():
        return float(text[:6])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
