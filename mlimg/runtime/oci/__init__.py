"""Registries of OCI images: manifests and blobs go both ways as streams, and nothing is believed without its digest.

`registry` is the client, over `client` (requests with credentials), `authorization` (what a challenge wants),
`credentials` (where they are kept), `cloud` (what a cloud's identity earns) and `transport` (HTTP); `image` reads
manifests, `upload` brings one blob there in the way that `strategy` knows of, from where `journal` says that another
process was cut; `push` brings many, and names them; `preflight` asks before bytes move.
https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

from mlimg.runtime.oci.client import BlobMissingError
from mlimg.runtime.oci.cloud import registry_credentials
from mlimg.runtime.oci.credentials import Credentials, CredentialSource, credentials_from
from mlimg.runtime.oci.image import RemoteImage
from mlimg.runtime.oci.journal import Journal
from mlimg.runtime.oci.push import push_blobs, send_and_name
from mlimg.runtime.oci.registry import Registry
from mlimg.runtime.oci.transport import Access

__all__ = [
    "Access",
    "BlobMissingError",
    "CredentialSource",
    "Credentials",
    "Journal",
    "Registry",
    "RemoteImage",
    "credentials_from",
    "push_blobs",
    "registry_credentials",
    "send_and_name",
]
