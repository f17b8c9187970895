"""AWS Signature Version 4, as far as one POST to a service's root needs it.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """An access key, and the token that makes a temporary one valid."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a signature is good for, and when it was made, as ``time.time()``."""

    service: str
    region: str
    now: float


def sign_post(url: str, body: bytes, headers: Mapping[str, str], keys: AwsKeys, scope: Scope) -> dict[str, str]:
    """The headers to send with a POST to ``/`` of a host: `headers`, the date, the token and the signature."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(scope.now))
    sent = {**headers, "X-Amz-Date": stamp}
    if keys.session_token:
        sent["X-Amz-Security-Token"] = keys.session_token
    signed = {"host": urlsplit(url).netloc, **{name.lower(): " ".join(text.split()) for name, text in sent.items()}}
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    request = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    place = f"{stamp[:8]}/{scope.region}/{scope.service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{place}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{keys.secret_key}".encode()
    for part in place.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    sent["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{place}, SignedHeaders={names}, Signature={signature}"
    )
    return sent
