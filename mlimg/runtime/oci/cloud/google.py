"""Google's registries: the token of the service account that the metadata service speaks for.

https://cloud.google.com/artifact-registry/docs/docker/authentication#token
https://cloud.google.com/compute/docs/metadata/querying-metadata
"""

import time
from collections.abc import Mapping
from typing import Final

from mlimg.runtime.oci.cloud.exchange import Exchange, Lease, refused
from mlimg.runtime.oci.credentials import Credentials

# By address, not by name: where there is no such service a resolver may take long to say so.
_HOST: Final = "169.254.169.254"
_PATH: Final = "/computeMetadata/v1/instance/service-accounts/default/token"
_FLAVOR: Final = "Metadata-Flavor"


class Google:
    """Artifact Registry and the names of Container Registry."""

    def __init__(self, environ: Mapping[str, str], exchange: Exchange) -> None:
        self._environ = environ
        self._exchange = exchange

    def serves(self, registry: str) -> bool:
        """Whether this is a registry of Google."""
        return registry == "gcr.io" or registry.endswith((".gcr.io", ".pkg.dev"))

    def lease(self, registry: str) -> Lease | None:
        """The account's access token; None where no metadata service of Google's is, or it has no account."""
        del registry  # one token for all of them
        what = "Google's metadata service"
        host = self._environ.get("GCE_METADATA_HOST") or _HOST
        reply = self._exchange.metadata(what, f"http://{host}{_PATH}", {_FLAVOR: "Google"})
        # Other clouds serve their metadata from the same address.
        if reply is None or reply.headers.get(_FLAVOR) != "Google" or reply.status == 404:
            return None
        token, seconds = reply.text("access_token"), reply.values.get("expires_in")
        if reply.status != 200 or not token or not isinstance(seconds, (int, float)) or seconds > 2**31:
            raise refused(what, reply, reply.text("error"), "the account needs roles/artifactregistry.reader")
        return Lease(Credentials("oauth2accesstoken", token), time.time() + seconds)
