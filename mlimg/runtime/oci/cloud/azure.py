"""Azure Container Registry: a service principal, workload identity or a managed identity, exchanged at the registry.

https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow (a secret, a federated credential)
https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
https://github.com/Azure/acr/blob/main/docs/AAD-OAuth.md: the exchange
"""

import base64
import json
import re
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlencode

from mlimg.runtime.oci.cloud.exchange import Exchange, Lease, Reply, endpoint, read_token, refused
from mlimg.runtime.oci.credentials import Credentials

_REGISTRY = re.compile(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){0,2}\.azurecr\.(io|cn|us)")
_RESOURCE: Final = "https://containerregistry.azure.net"
_METADATA: Final = "http://169.254.169.254"
_AUTHORITIES: Final = {
    "io": "https://login.microsoftonline.com",
    "cn": "https://login.chinacloudapi.cn",
    "us": "https://login.microsoftonline.us",
}
_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
# Registries give tokens for three hours; one that does not tell is asked again much sooner.
_UNTOLD_SECONDS: Final = 600.0
_AAD_CODE = re.compile(r"AADSTS[0-9]{1,9}")


class Azure:
    """The registries of Azure."""

    def __init__(self, environ: Mapping[str, str], exchange: Exchange) -> None:
        self._environ = environ
        self._exchange = exchange

    def serves(self, registry: str) -> bool:
        """Whether this is a registry of Azure."""
        return _REGISTRY.fullmatch(registry) is not None

    def lease(self, registry: str) -> Lease | None:
        """The registry's refresh token; None where this machine has no identity."""
        proof = self._proof()
        token = self._of_entra(registry, *proof) if proof else self._managed()
        if not token:
            return None
        form = {"grant_type": "access_token", "service": registry, "access_token": token}
        if tenant := self._environ.get("AZURE_TENANT_ID"):
            form["tenant"] = tenant
        reply = self._exchange.ask(registry, f"https://{registry}/oauth2/exchange", {}, form)
        refresh = reply.text("refresh_token")
        if reply.status != 200 or not refresh:
            raise refused(
                f"the token exchange of {registry}", reply, _code(reply), "the identity needs the role AcrPull"
            )
        return Lease(Credentials(identity_token=refresh), _end_of(refresh) or time.time() + _UNTOLD_SECONDS)

    def _proof(self) -> tuple[Mapping[str, str], str] | None:
        """What proves to Entra who asks, and what may be wrong where it does not: a secret, or Kubernetes' token."""
        environ = self._environ
        if not (environ.get("AZURE_CLIENT_ID") and environ.get("AZURE_TENANT_ID")):
            return None
        if environ.get("AZURE_CLIENT_SECRET"):
            secret = environ["AZURE_CLIENT_SECRET"].strip()
            return {"client_secret": secret}, "has the secret ended? AZURE_CLIENT_SECRET is its value, not its ID"
        if file := environ.get("AZURE_FEDERATED_TOKEN_FILE"):
            token = read_token(file, "AZURE_FEDERATED_TOKEN_FILE")
            hint = "the identity's federated credential must name this cluster and service account"
            return {"client_assertion_type": _ASSERTION, "client_assertion": token}, hint
        return None

    def _of_entra(self, registry: str, proof: Mapping[str, str], hint: str) -> str:
        """A token of Microsoft Entra for the application or identity that `proof` belongs to."""
        environ = self._environ
        authority = endpoint(environ, "AZURE_AUTHORITY_HOST", _AUTHORITIES[registry.rpartition(".")[2]])
        reply = self._exchange.ask(
            "Microsoft Entra",
            f"{authority}/{quote(environ['AZURE_TENANT_ID'], safe='')}/oauth2/v2.0/token",
            {},
            {
                "grant_type": "client_credentials",
                "client_id": environ["AZURE_CLIENT_ID"],
                **proof,
                "scope": f"{_RESOURCE}/.default",
            },
        )
        token = reply.text("access_token")
        if reply.status != 200 or not token:
            raise refused("Microsoft Entra", reply, _code(reply), hint)
        return token

    def _managed(self) -> str:
        """A token of the machine's managed identity; "" where there is none."""
        what = "Azure's metadata service"
        root = self._environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or _METADATA
        query = {"api-version": "2018-02-01", "resource": _RESOURCE}
        if client := self._environ.get("AZURE_CLIENT_ID"):
            query["client_id"] = client
        url = f"{root.rstrip('/')}/metadata/identity/oauth2/token?{urlencode(query)}"
        reply = self._exchange.metadata(what, url, {"Metadata": "true"})
        return reply.text("access_token") if reply is not None and reply.status == 200 else ""


def _code(reply: Reply) -> str:
    """Which error Azure names; its description, which repeats what was sent, is not shown."""
    match = _AAD_CODE.search(reply.data.decode("ascii", "replace"))
    return " ".join(filter(None, (reply.text("error"), match[0] if match else "")))


def _end_of(token: str) -> float:
    """When a JSON web token ends, as it says itself; 0 where it does not say."""
    try:
        payload = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (LookupError, ValueError, TypeError, OverflowError, RecursionError):
        return 0.0
