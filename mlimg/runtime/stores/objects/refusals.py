"""What object stores and obstore say, as errors of ours. Nothing of an address but its name is ever shown.

Requests are signed in headers or in their addresses, and obstore quotes both: its texts are searched for the few words
that are worth showing, and never passed on, nor chained to what is raised.
"""

import re
from typing import Final

from mlimg.runtime.errors import RUN_AGAIN, CredentialsError, MlimgError, RemoteError, RemoteTemporaryError, printable
from mlimg.runtime.oci.transport import TEMPORARY_STATUSES

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>\s*([A-Za-z0-9._-]{1,100})\s*</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<\n]{1,1000})")
_SECRETS: Final = re.compile(r"(?i)(sig|signature|x-[a-z]+-(?:signature|credential|security-token))=[^&\s\"']+")
_NO_IDENTITY: Final = re.compile(
    r"(?i)credential|metadata|AssumeRole|WebIdentity|authoriz|token|service account|account must be", re.ASCII
)
_NO_TRUST: Final = re.compile(r"(?i)certificate|UnknownIssuer|BadScheme")
_HINTS: Final = {
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "ExpiredToken": "the credentials have expired: sign in again",
    "AccessDenied": "the account may not do this here; without the right to list, S3 says so of what is missing, too",
    "NoSuchBucket": "mlimg makes no buckets: check the name, or make it",
    "ContainerNotFound": "mlimg makes no containers: check the name, or make it",
    "SlowDown": RUN_AGAIN,
}


def code_of(text: str) -> str:
    """The store's own name for what is wrong, "" where it gives none."""
    matched = _CODE.search(text)
    return matched[1] if matched else ""


def refusal(what: str, status: int, body: str = "", *, moved_to: str = "") -> MlimgError:
    """The error for an answer that is none of the expected ones."""
    code, said = code_of(body), _MESSAGE.search(body)
    words = ": ".join(filter(None, (code, said[1].strip() if said else "")))
    message = f"{what}: the store answers {status}" + (f" ({_safe(words)})" if words else "")
    hint = _HINTS.get(code, "")
    if status in TEMPORARY_STATUSES:
        return RemoteTemporaryError(message, hint=hint or RUN_AGAIN)
    if status in {401, 403}:
        return CredentialsError(message, hint=hint or "check the credentials, and what they allow")
    if 300 <= status < 400:
        where = f" to {_safe(moved_to)[:200]}" if moved_to else ""
        return RemoteError(
            f"{what}: the store redirects{where}, which is not followed",
            hint="AWS_REGION names the region that the bucket is in",
        )
    return RemoteError(message, hint=hint)


def translated(what: str, error: Exception) -> MlimgError:
    """The error for what obstore raises. Raise it ``from None``: the original quotes signed addresses."""
    text = str(error).partition("\n\nDebug source")[0]
    kind = type(error).__name__
    status = _STATUS.search(text)
    if status:
        return refusal(what, int(status[1]), text)
    if _NO_TRUST.search(str(error)):
        return RemoteError(
            f"{what}: no trusted connection to the store",
            hint="for a company's certificate give its bundle: --ca-bundle, MLIMG_CA_BUNDLE or AWS_CA_BUNDLE",
        )
    if kind in {"PermissionDeniedError", "UnauthenticatedError"} or _NO_IDENTITY.search(text):
        return CredentialsError(
            f"{what}: there are no credentials, or they cannot be had",
            hint="docs/runtime-contract.md says where they are looked for",
        )
    if "HTTP error" in text or "error sending request" in text or kind == "TimeoutError":
        return RemoteTemporaryError(f"{what}: the store cannot be reached, or broke off")
    return RemoteError(f"{what}: {kind}")


def _safe(text: str) -> str:
    return printable(_SECRETS.sub(r"\1=…", text))[:300]
