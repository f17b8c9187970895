"""From a registry's challenge to the ``Authorization`` header it wants.

https://distribution.github.io/distribution/spec/auth/token/ describes the exchange. Credentials reach the registry
itself and a token service of the same host or domain, nobody else, whatever a challenge says.
"""

import base64
import json
import math
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlencode, urlsplit

from urllib3.response import BaseHTTPResponse

from mlimg.runtime.errors import CredentialsError, LimitError, RemoteTemporaryError, printable
from mlimg.runtime.hosts import host_of, is_loopback, serves_metadata
from mlimg.runtime.oci.credentials import Credentials
from mlimg.runtime.oci.transport import (
    Patience,
    Transport,
    Unavailable,
    discard,
    read_capped,
)

_PARAMETER = re.compile(r'([A-Za-z]+)="((?:[^"\\]|\\.)*)"|([A-Za-z]+)=([^\s,"]+)')
_MAX_CHALLENGE_BYTES: Final = 8192
_MAX_TOKEN_BYTES: Final = 1024 * 1024
_TOKEN_SECONDS: Final = 15.0
# Domains below which everybody can have a host: sharing one of them proves nothing.
_SHARED_DOMAINS: Final = frozenset(
    {
        "amazonaws.com", "appspot.com", "azurecr.io", "azurewebsites.net", "cloudapp.net", "cloudfront.net",
        "cluster.local", "fly.dev", "github.io", "gitlab.io", "googleapis.com", "herokuapp.com", "netlify.app",
        "nip.io", "onrender.com", "pages.dev", "pkg.dev", "run.app", "sslip.io", "vercel.app", "web.app",
        "windows.net", "workers.dev",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a ``WWW-Authenticate`` header asks for."""

    scheme: str  # "basic" or "bearer"
    realm: str = ""
    service: str = ""

    @classmethod
    def parse(cls, header: str) -> "Challenge | None":
        """Read a header; None when it asks for nothing that registries use."""
        scheme, _, rest = header[:_MAX_CHALLENGE_BYTES].strip().partition(" ")
        if scheme.lower() not in {"basic", "bearer"}:
            return None
        values = {(m[1] or m[3]).lower(): m[2] or m[4] or "" for m in _PARAMETER.finditer(rest)}
        return cls(scheme.lower(), values.get("realm", ""), values.get("service", ""))


@dataclass(frozen=True, slots=True)
class _Held:
    """A header, and where a token comes from that will run out."""

    header: str = field(repr=False)
    challenge: Challenge | None = None
    renew_at: float = math.inf  # of the monotonic clock


class Authorizer:
    """Keeps the header for each registry and set of scopes. Safe to use from several threads."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._headers: dict[tuple[str, tuple[str, ...]], _Held] = {}
        self._lock = threading.Lock()

    def headers(self, registry: str, scopes: tuple[str, ...]) -> Mapping[str, str]:
        """The header known so far; none before the first challenge. A token that is about to run out is renewed."""
        known = self._headers.get((registry, scopes))
        if known is not None and time.monotonic() >= known.renew_at:
            known = self._renewed(registry, scopes, known)
        return {"Authorization": known.header} if known else {}

    def _renewed(self, registry: str, scopes: tuple[str, ...], known: _Held) -> _Held:
        with self._lock:
            held = self._headers[(registry, scopes)]
            if held is not known or held.challenge is None:
                return held  # another thread has just renewed it
            try:
                held = self._token(registry, scopes, held.challenge, self._transport.access.credentials(registry))
            except (CredentialsError, RemoteTemporaryError):
                held = replace(held, renew_at=math.inf)  # good for a moment yet, and then a 401 tells
            self._headers[(registry, scopes)] = held
            return held

    def answer(
        self, registry: str, scopes: tuple[str, ...], refused: Mapping[str, str], response: BaseHTTPResponse
    ) -> None:
        """Take the challenge of a 401 that the headers `refused` earned.

        Raises CredentialsError when no other header can be had, RemoteTemporaryError.
        """
        challenges = [Challenge.parse(text) for text in response.headers.getlist("WWW-Authenticate")]
        discard(response)
        with self._lock:
            known = self._headers.get((registry, scopes))
            if (known.header if known else None) != refused.get("Authorization"):
                return  # another thread has just renewed it
            asked = {challenge.scheme: challenge for challenge in challenges if challenge}
            credentials = self._transport.access.credentials(registry)
            if "bearer" in asked:
                held = self._token(registry, scopes, asked["bearer"], credentials)
            elif "basic" in asked and credentials and credentials.username:
                held = _Held(_basic(credentials))
            else:
                raise _refused(registry, credentials)
            if refused.get("Authorization") == held.header:
                raise _refused(registry, credentials)
            self._headers[(registry, scopes)] = held

    def _token(
        self, registry: str, scopes: tuple[str, ...], challenge: Challenge, credentials: Credentials | None
    ) -> _Held:
        realm = challenge.realm
        if not may_receive_credentials(registry, self._transport.access.scheme(registry), realm):
            raise CredentialsError(
                f"{registry} sends for a token to {printable(realm)[:200]}, which is another party: not asked"
            )
        patience = Patience(self._transport.access, self._transport.stop)
        return patience.run(lambda: self._ask(registry, scopes, challenge, credentials))

    def _ask(
        self, registry: str, scopes: tuple[str, ...], challenge: Challenge, credentials: Credentials | None
    ) -> _Held:
        asked_at = time.monotonic()
        query = [("service", challenge.service), *(("scope", scope) for scope in scopes)]
        if credentials and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "service": challenge.service,
                "client_id": "mlimg",
                "scope": " ".join(scopes),
            }
            data = urlencode(form).encode()
            headers = {
                "Content-Type": "application/x-www-form-urlencoded",
                "Content-Length": str(len(data)),
            }
            response = self._transport.once(
                "POST", challenge.realm, headers, lambda: [data], answer_seconds=_TOKEN_SECONDS
            )
        else:
            url = challenge.realm + ("&" if "?" in challenge.realm else "?") + urlencode(query)
            headers = {"Authorization": _basic(credentials)} if credentials else {}
            response = self._transport.once("GET", url, headers, answer_seconds=_TOKEN_SECONDS)
        token, seconds = _read_token(registry, response, credentials)
        # Renewed when a tenth of its life is left, at most half a minute: a request may have to wait its turn.
        renew_at = asked_at + seconds - min(30.0, seconds / 10)
        return _Held(f"Bearer {token}", challenge, renew_at)


def may_receive_credentials(registry: str, scheme: str, realm: str) -> bool:
    """Whether a token service belongs to the registry: the same host, or a sibling of one domain; never weaker TLS."""
    try:
        parts = urlsplit(realm)
    except ValueError:
        return False
    if parts.scheme not in {"https", scheme} or parts.username or not parts.hostname:
        return False
    host, own = parts.hostname, host_of(registry)
    if host == own or (is_loopback(parts.netloc) and is_loopback(registry)):
        return True
    if serves_metadata(parts.netloc) or own.replace(".", "").isdigit() or ":" in own:
        return False
    domain = _registrable(own)
    return domain != "" and _registrable(host) == domain


def _registrable(host: str) -> str:
    labels = host.lower().split(".")
    shared = ".".join(labels[-2:]) in _SHARED_DOMAINS
    # Two short labels at the end are most often a country's ``co.uk`` or ``com.au``.
    country = len(labels) > 1 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
    wanted = 3 if shared or country else 2
    if host == "docker.io" or host.endswith(".docker.io"):
        wanted = 2
    return ".".join(labels[-wanted:]) if len(labels) >= wanted else ""


def _basic(credentials: Credentials) -> str:
    packed = base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
    return f"Basic {packed}"


def _read_token(registry: str, response: BaseHTTPResponse, credentials: Credentials | None) -> tuple[str, float]:
    """The token and the seconds that it is good for, infinitely many where the service does not say."""
    if response.status in {400, 401, 403}:
        discard(response)
        raise _refused(registry, credentials)
    try:
        data = read_capped(response, _MAX_TOKEN_BYTES, f"the token for {registry}", seconds=_TOKEN_SECONDS)
    except (LimitError, Unavailable) as error:
        raise CredentialsError(str(error)) from error
    try:
        answer = json.loads(data)
        token, seconds = answer.get("token") or answer.get("access_token"), answer.get("expires_in")
    except (ValueError, RecursionError, AttributeError):
        token = seconds = None
    # A line break in a token would add a header of the service's choice.
    if response.status != 200 or not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise CredentialsError(f"the token service of {registry} answers {response.status} and gives no usable token")
    return token, float(seconds) if isinstance(seconds, int) and 0 < seconds < 2**31 else math.inf


def _refused(registry: str, credentials: Credentials | None) -> CredentialsError:
    if credentials is None:
        return CredentialsError(
            f"{registry} wants credentials and there are none for it", hint=f"docker login {registry}"
        )
    return CredentialsError(f"{registry} refuses the credentials kept for it", hint=f"docker login {registry}")
