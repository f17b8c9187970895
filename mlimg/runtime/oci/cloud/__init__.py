"""Credentials of a cloud's own registries, from the identity that the cloud gives this machine or container.

`aws`, `google` and `azure` each know their registries and how an identity becomes a login; `exchange` is the small,
bounded HTTP they need, `signing` AWS's signature. An identity is asked for and shown only for a registry of its cloud.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from mlimg.runtime.oci.cloud.aws import Aws
from mlimg.runtime.oci.cloud.azure import Azure
from mlimg.runtime.oci.cloud.exchange import Exchange, Lease
from mlimg.runtime.oci.cloud.google import Google
from mlimg.runtime.oci.credentials import Credentials, CredentialSource, credentials_from
from mlimg.runtime.variables import switch

# A login is renewed this long before it ends, so that it does not end between being chosen and being read.
_MARGIN_SECONDS: Final = 60.0
# Where there is no identity there is none a moment later either: a metadata service is not sought with each request.
_ABSENT_SECONDS: Final = 300.0


class Cloud(Protocol):
    """One cloud: its registries, and the login its identity earns there."""

    def serves(self, registry: str) -> bool:
        """Whether a ``host[:port]`` is a registry that only this cloud can run."""

    def lease(self, registry: str) -> Lease | None:
        """A login for the registry, None where this machine has no identity. Raises CredentialsError and others."""


class CloudIdentity:
    """Logins for the clouds' registries, kept until shortly before they end. Safe to use from several threads."""

    def __init__(self, environ: Mapping[str, str], ca_bundle: Path | None = None) -> None:
        exchange = Exchange(ca_bundle)
        self._environ = environ
        self._clouds: tuple[Cloud, ...] = (
            Aws(environ, exchange),
            Google(environ, exchange),
            Azure(environ, exchange),
        )
        self._known: dict[str, tuple[Credentials | None, float]] = {}
        self._lock = threading.Lock()

    def __call__(self, registry: str) -> Credentials | None:
        """The login for a registry of a cloud; None for every other registry and where there is no identity.

        Raises CredentialsError when an identity is there and earns no login, RemoteTemporaryError when nobody
        answers who should, LocalIOError when a token's file cannot be read.
        """
        cloud = next((cloud for cloud in self._clouds if cloud.serves(registry)), None)
        if cloud is None or switch(self._environ, "MLIMG_OFFLINE", default=False):
            return None
        with self._lock:
            credentials, until = self._known.get(registry, (None, 0.0))
            if time.time() < until:
                return credentials
            lease = cloud.lease(registry)
            if lease is None:
                self._known[registry] = (None, time.time() + _ABSENT_SECONDS)
                return None
            self._known[registry] = (lease.credentials, lease.ends - _MARGIN_SECONDS)
            return lease.credentials


def registry_credentials(environ: Mapping[str, str], ca_bundle: Path | None = None) -> CredentialSource:
    """What Docker's configuration knows of a registry, else what a cloud's identity earns there.

    Nothing is read or asked before the first question. `ca_bundle` is trusted besides the system's certificates.
    """
    configured, identity = credentials_from(environ), CloudIdentity(environ, ca_bundle)
    return lambda registry: configured(registry) or identity(registry)
