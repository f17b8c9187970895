"""Requests to registries, with credentials to a registry's own origin and nowhere else."""

import json
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any, Final
from urllib.parse import urlsplit

from urllib3.response import BaseHTTPResponse

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import CredentialsError, IntegrityError, LimitError, MlimgError, RemoteError, printable
from mlimg.runtime.oci.authorization import Authorizer
from mlimg.runtime.oci.transport import (
    MAX_REDIRECTS,
    REDIRECTS,
    Access,
    Body,
    Patience,
    Transport,
    Unavailable,
    discard,
    read_capped,
    redirected,
)
from mlimg.runtime.reference import ImageReference


class BlobMissingError(RemoteError):
    """A manifest names blobs that the registry does not have, whatever it said of them before.

    `digests` are those blobs; empty where the registry does not tell them all.
    """

    digests: frozenset[Digest] = frozenset()


class Renewed(Unavailable):
    """The credentials of a request were refused, and have been renewed."""


class Client:
    """Every registry, reached the way `access` says. Safe to use from several threads."""

    def __init__(self, access: Access, stop: Event | None = None) -> None:
        self.access = access
        self.stop = stop or Event()
        self._transport = Transport(access, self.stop)
        self._authorizer = Authorizer(self._transport)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def patience(self) -> Patience:
        """Fresh patience for one thing that may fail for a while."""
        return Patience(self.access, self.stop)

    def request(
        self,
        reference: ImageReference,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        push: bool = False,
        also_pull: Sequence[str] = (),
        answer_seconds: float | None = None,
        patient: bool = True,
        resend: bool = True,
        heed_stop: bool = True,
    ) -> BaseHTTPResponse:
        """Send with credentials to the registry's origin; `path` is below the repository or an absolute URL there.

        With `patient` temporary failures are tried again here, else they are raised as Unavailable. Without `resend`
        a body whose credentials were refused is not sent again: Renewed is raised once there are better ones.
        """
        url = path if "://" in path else f"{self.origin(reference)}/v2/{reference.repository}/{path}"
        scopes = (
            f"repository:{reference.repository}:{'pull,push' if push else 'pull'}",
            *(f"repository:{repository}:pull" for repository in also_pull),
        )
        for last in (False, True):
            sent = self._authorizer.headers(reference.registry, scopes)
            every = {**(headers or {}), **sent}
            if patient:
                response = self._transport.send(method, url, every, body)
            else:
                response = self._transport.once(
                    method, url, every, body, answer_seconds=answer_seconds, heed_stop=heed_stop
                )
            if response.status != 401:
                break
            if last:
                discard(response)
                raise CredentialsError(
                    f"{reference.registry} refuses access to {reference.repository}",
                    hint=f"docker login {reference.registry}; the repository may also not exist",
                )
            self._authorizer.answer(reference.registry, scopes, sent, response)
            if not resend:
                raise Renewed(f"{reference.registry} refuses access to {reference.repository}", 0.0)
        if method in {"GET", "HEAD"}:
            return self._follow(method, url, headers or {}, response)
        return response

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], response: BaseHTTPResponse
    ) -> BaseHTTPResponse:
        """Follow redirects, as to a registry's object store, with no credentials and never from TLS to plain text."""
        for _ in range(MAX_REDIRECTS):
            if response.status not in REDIRECTS:
                return response
            url = redirected(response, url).geturl()
            response = self._transport.send(method, url, headers)
        raise RemoteError(f"{urlsplit(url).netloc} redirects more than {MAX_REDIRECTS} times")

    def origin(self, reference: ImageReference) -> str:
        """Scheme and host of a registry."""
        # Docker Hub's registry has another host than its name says.
        host = "registry-1.docker.io" if reference.registry == "docker.io" else reference.registry
        return f"{self.access.scheme(reference.registry)}://{host}"


def expect(response: BaseHTTPResponse, what: str, *statuses: int) -> None:
    """Raise what an answer other than `statuses` means, in the registry's words, and close it."""
    if response.status not in statuses:
        raise refusal(response, what)[1]


def refusal(response: BaseHTTPResponse, what: str) -> tuple[str, MlimgError]:
    """The registry's error code ("" where it gives none), and the error to raise.

    https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#error-codes
    """
    code = text = ""
    errors: list[Any] = []
    try:
        errors = json.loads(read_capped(response, 65536, "an error page", seconds=10))["errors"]
        code, text = str(errors[0].get("code", "")), str(errors[0].get("message", ""))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, LimitError, Unavailable):
        pass  # the status alone has to do
    said = printable(": ".join(filter(None, (code, text))))[:300]
    message = f"{what}: the registry answers {response.status}" + (f" ({said})" if said else "")
    if code in {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"}:
        missing = BlobMissingError(message, hint="the registry lost it, or is just removing it: run again")
        missing.digests = _told_digests(errors)
        return code, missing
    if code == "DIGEST_INVALID":
        return code, IntegrityError(message, hint="the bytes changed between hashing and sending")
    return code, RemoteError(message, hint=_HINTS.get(response.status, ""))


def _told_digests(errors: Sequence[Any]) -> frozenset[Digest]:
    """The blob that each error is about: docker-registry gives its digest as detail, others an object that has it."""
    found = set()
    for error in errors:
        detail = error.get("detail") if isinstance(error, dict) else None
        try:
            found.add(Digest.parse(str(detail.get("digest") if isinstance(detail, dict) else detail)))
        except ValueError:
            return frozenset()
    return frozenset(found)


_HINTS: Final = {
    403: "the account may not do this here; ask for access to the repository",
    404: "check the name; some registries want a repository to be made first",
    413: "the registry, or the proxy before it, limits the size of one upload",
}
