"""A model on the Hugging Face hub, at one commit.

`huggingface_hub` lists the repository and finds the token that the person is signed in with; the bytes are read by our
own HTTP, which takes that token to the hub's origin alone: the hub redirects to other hosts for large files.
"""

import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    CredentialsError,
    IntegrityError,
    MlimgError,
    RemoteError,
    RemoteTemporaryError,
    printable,
)
from mlimg.runtime.oci.cloud.exchange import word
from mlimg.runtime.oci.transport import TEMPORARY_STATUSES, Patience, Unavailable
from mlimg.sources.address import hub_repository
from mlimg.sources.extras import need
from mlimg.sources.remote import RemoteEntry, RemoteSource, Wanted, listed
from mlimg.sources.web import Web, check_origin

if TYPE_CHECKING:
    from mlimg.runtime.oci import Access

_ENDPOINT: Final = "https://huggingface.co"
_SECONDS: Final = 60.0  # for the listing of a repository


@dataclass(frozen=True, slots=True)
class _Repository:
    """A repository of the hub, and how it is asked."""

    hub: Any  # the package `huggingface_hub`
    endpoint: str
    name: str
    revision: str

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


def open_address(wanted: Wanted, access: "Access") -> RemoteSource:
    """List the files of a repository. Raises what `open_remote` raises."""
    hub: Any = need("huggingface_hub", "hf")
    name, revision = hub_repository(wanted.address)
    endpoint = access.environ.get("HF_ENDPOINT", _ENDPOINT).rstrip("/")
    origin = check_origin("HF_ENDPOINT", endpoint)
    token = word(access.environ, "HF_TOKEN") or _kept_token(hub)
    repository = _Repository(hub, endpoint, name, revision)
    info = _info(repository, access, token)
    commit = str(info.sha)
    web = Web(access, origin, {"Authorization": f"Bearer {token}"} if token else {})
    entries = _entries(repository, web, commit, info.siblings or ())
    return listed(wanted, access, entries, {"uri": f"hf://{name}", "revision": commit})


def _kept_token(hub: Any) -> str | None:
    """The token that the person is signed in with. Raises CredentialsError where it is kept and cannot be had."""
    try:
        token = hub.get_token()
    except Exception as error:  # of its exchange of identities, and of files that cannot be read
        raise CredentialsError(
            f"the token for the Hugging Face hub cannot be had ({type(error).__name__})", hint="hf auth login"
        ) from None
    return str(token) if token else None


def _info(repository: _Repository, access: "Access", token: str | None) -> Any:
    """What the hub knows of a repository. Raises CredentialsError, RemoteError, RemoteTemporaryError."""
    hub = repository.hub
    if access.ca_bundle is not None:
        client, context = type(hub.get_session()), ssl.create_default_context()
        context.load_verify_locations(access.ca_bundle)
        hub.set_client_factory(lambda: client(verify=context, follow_redirects=True, timeout=_SECONDS))
    api = hub.HfApi(endpoint=repository.endpoint, token=token or False)
    revision = repository.revision or None

    def ask() -> Any:
        try:
            return api.model_info(repository.name, revision=revision, files_metadata=True, timeout=_SECONDS)
        except Exception as error:  # its own errors, those of its HTTP client, and what malformed answers make of both
            raised = _refusal(error, str(repository))
            if isinstance(raised, RemoteTemporaryError):
                raise Unavailable(raised.message) from None
            raise raised from None

    return Patience(access, threading.Event()).run(ask)


def _entries(repository: _Repository, web: Web, commit: str, siblings: Any) -> Iterator[RemoteEntry]:
    for file in siblings:
        path, size = str(file.rfilename), file.size
        if not isinstance(size, int) or size < 0:
            raise RemoteError(f"the hub does not tell the length of `{printable(path)[:200]}`")
        sha256 = _sha256(file)
        fingerprint = sha256.text if sha256 else f"{repository.name}@{commit}:{path}:{file.blob_id}"
        url = repository.hub.hf_hub_url(repository.name, path, revision=commit, endpoint=repository.endpoint)
        yield RemoteEntry(path, size, web.reader(url, size), sha256, fingerprint)


def _sha256(file: Any) -> Digest | None:
    """What the hub says of a file that git does not hold itself."""
    if file.lfs is None:
        return None
    try:
        return Digest.parse(f"sha256:{file.lfs.sha256}")
    except ValueError as error:
        raise IntegrityError(f"the hub gives `{printable(str(file.rfilename))[:200]}` a malformed sha256") from error


def _refusal(error: Exception, what: str) -> MlimgError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = type(error).__name__
    if kind in {"GatedRepoError", "RepositoryNotFoundError"} or status in {401, 403}:
        return CredentialsError(
            f"{what} does not exist, or is not open to this account",
            hint="HF_TOKEN=… or `hf auth login`; gated models are opened on their page",
        )
    if status is not None:
        temporary = status in TEMPORARY_STATUSES
        said = "there is no such revision" if kind == "RevisionNotFoundError" else f"the hub answers {status}"
        return (RemoteTemporaryError if temporary else RemoteError)(f"{what}: {said}")
    if kind in {"OfflineModeIsEnabled", "HFValidationError"}:
        return RemoteError(f"{what}: {printable(str(error))[:200]}")
    if isinstance(error, OSError) or "http" in type(error).__module__:
        return RemoteTemporaryError(f"{what}: the hub cannot be reached ({kind})")
    return RemoteError(f"{what}: the hub's answer makes no sense ({kind})")
