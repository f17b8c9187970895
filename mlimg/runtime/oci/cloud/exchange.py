"""Asking a cloud's services for tokens: small answers, short waits, and no secret in what is told of a failure."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit

from mlimg.runtime.errors import CredentialsError, LimitError, LocalIOError, MlimgError, printable
from mlimg.runtime.hosts import is_loopback
from mlimg.runtime.oci.credentials import Credentials
from mlimg.runtime.oci.transport import Access, Body, Patience, Transport, Unavailable, Unwilling, discard, read_capped

_MAX_ANSWER_BYTES: Final = 256 * 1024
_MAX_TOKEN_FILE_BYTES: Final = 64 * 1024
_ANSWER_SECONDS: Final = 10.0
# A metadata service is on this machine or its host: it takes a connection at once or is not there.
_METADATA_CONNECT_SECONDS: Final = 1.5
_METADATA_ANSWER_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A login and the time, as ``time.time()``, at which it ends."""

    credentials: Credentials
    ends: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What a service said. `values` is its JSON object, empty where it is none."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def values(self) -> Mapping[str, object]:
        """The members of the JSON object."""
        try:
            value = json.loads(self.data)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def line(self) -> str:
        """The whole of a good answer, where it may go into a header: printable ASCII, else ""."""
        text = self.data.decode("latin-1").strip() if self.status == 200 else ""
        return text if text.isascii() and text.isprintable() else ""

    def text(self, name: str) -> str:
        """A member that may go into a header: printable ASCII, else ""."""
        value = self.values.get(name)
        return value if isinstance(value, str) and value.isascii() and value.isprintable() else ""


class Exchange:
    """Sends the few requests that turn an identity into a login. Safe to use from several threads."""

    def __init__(self, ca_bundle: Path | None = None) -> None:
        stop = threading.Event()
        self._services = Transport(Access(ca_bundle=ca_bundle, attempts=3, stall_seconds=_ANSWER_SECONDS), stop)
        self._metadata = Transport(Access(ca_bundle=ca_bundle, connect_seconds=_METADATA_CONNECT_SECONDS), stop)

    def ask(self, what: str, url: str, headers: Mapping[str, str], form: Mapping[str, str] | bytes) -> Reply:
        """POST to a service that must be there, three times where it fails in passing.

        `what` names the service in errors: addresses and answers may hold secrets, and are not shown. Raises
        RemoteTemporaryError and CredentialsError.
        """
        data = form if isinstance(form, bytes) else urlencode(form).encode()
        every = {"Content-Type": "application/x-www-form-urlencoded", **headers, "Content-Length": str(len(data))}

        def attempt() -> Reply:
            return _send(self._services, what, _ANSWER_SECONDS, "POST", url, every, lambda: [data])

        return Patience(self._services.access, self._services.stop).run(attempt)

    def metadata(self, what: str, url: str, headers: Mapping[str, str], method: str = "GET") -> Reply | None:
        """Ask the machine's metadata service; None where there is none, which is asked once.

        One that answers 429 or 5xx is there, and is asked three times: under load they do. Raises CredentialsError,
        RemoteTemporaryError.
        """

        def attempt() -> Reply | None:
            try:
                return _send(self._metadata, what, _METADATA_ANSWER_SECONDS, method, url, headers)
            except Unwilling:
                raise
            except Unavailable:
                return None

        return Patience(self._services.access, self._services.stop).run(attempt)


def _send(  # noqa: PLR0917 (a request's own order)
    transport: Transport,
    what: str,
    seconds: float,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Body | None = None,
) -> Reply:
    try:
        response = transport.once(method, url, headers, body, answer_seconds=seconds)
        if 300 <= response.status < 400:
            # Whoever is redirected shows the identity to another party.
            discard(response)
            raise CredentialsError(f"{what} redirects to another place: not followed")
        answer = read_capped(response, _MAX_ANSWER_BYTES, f"the answer of {what}", seconds=seconds)
    except Unavailable as failure:
        raise type(failure)(f"{what} gives no answer", failure.retry_after_seconds) from None
    except LimitError as error:
        raise CredentialsError(str(error)) from None
    except CredentialsError:
        raise
    except MlimgError as error:
        raise CredentialsError(f"{what} cannot be asked: {error.message}", hint=error.hint) from None
    return Reply(response.status, response.headers, answer)


def endpoint(environ: Mapping[str, str], name: str, default: str) -> str:
    """The URL that a variable gives instead of a service's own. Raises CredentialsError for one that shows secrets."""
    url = environ.get(name) or default
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and not parts.username
    except ValueError:
        sound = False
    if not sound or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.netloc))):
        raise CredentialsError(f"{name} is no https address", hint="credentials are not sent in plain text")
    return url.rstrip("/")


def read_token(path: str, name: str) -> str:
    """A token from the file that the variable `name` gives; platforms renew it there. Raises CredentialsError."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_TOKEN_FILE_BYTES + 1)
    except OSError as error:
        raise LocalIOError(f"cannot read {printable(path)}, which {name} names: {error.strerror}") from error
    token = data.decode("ascii", "replace").strip()
    if not token or len(data) > _MAX_TOKEN_FILE_BYTES or not token.isprintable() or not token.isascii():
        raise CredentialsError(f"{printable(path)}, which {name} names, holds no token")
    return token


def word(environ: Mapping[str, str], name: str) -> str:
    """A variable that goes into a header, without the blanks that files leave around it. Raises CredentialsError."""
    text = environ.get(name, "").strip()
    if not text.isascii() or not text.isprintable():
        raise CredentialsError(f"{name} holds what no key or token has")
    return text


def refused(what: str, reply: Reply, code: str = "", hint: str = "") -> CredentialsError:
    """The error for an answer that is no login; of the answer only a short `code` is shown."""
    said = printable(code)[:80]
    return CredentialsError(f"{what} answers {reply.status}" + (f" ({said})" if said else ""), hint=hint)
