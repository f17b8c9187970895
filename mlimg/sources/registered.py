"""A version of a model in an MLflow model registry.

`mlflow-skinny` asks the registry where the version's files are: on the tracking server itself, in an object store, or
in a folder of this machine. They are read there by our own means; the tracking server's credentials go to its own
origin alone.
"""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlencode, urlsplit

from mlimg.runtime.errors import (
    CredentialsError,
    LimitError,
    MlimgError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
    UsageError,
    printable,
)
from mlimg.runtime.oci.cloud.exchange import word
from mlimg.sources import ModelSource
from mlimg.sources.address import check_address, registered_model
from mlimg.sources.extras import need
from mlimg.sources.local import MAX_FILES, LocalSource, open_source
from mlimg.sources.remote import RemoteEntry, RemoteSource, Wanted, listed, open_remote
from mlimg.sources.web import Web, check_origin

if TYPE_CHECKING:
    from mlimg.runtime.oci import Access

# https://mlflow.org/docs/latest/rest-api.html and the proxy for artifacts beside it
_ARTIFACTS: Final = "/api/2.0/mlflow-artifacts/artifacts"
_MAX_LISTING_BYTES: Final = 16 * 1024 * 1024
_MAX_FOLDERS: Final = 10_000


def open_address(wanted: Wanted, access: "Access") -> ModelSource:
    """List the files of a registered version. Raises what `open_remote` raises."""
    tracking = access.environ.get("MLFLOW_TRACKING_URI", "")
    if not tracking:
        raise UsageError(
            f"model.source: {wanted.address} is in a registry that nothing names", hint="set MLFLOW_TRACKING_URI"
        )
    _credentials(access)  # MLflow's client would quote a malformed token in its error
    name, version, place = _where(wanted.address, tracking, access)
    origin = {"uri": f"models:/{name}", "revision": version}
    scheme = urlsplit(place).scheme
    if scheme == "mlflow-artifacts":
        return _served(wanted, access, tracking, place, origin)
    if scheme in {"s3", "gs"}:
        try:
            found = open_remote(replace(wanted, address=check_address(place)), access)
        except ValueError as error:
            raise RemoteError(f"{wanted.address} is at an address that makes no sense") from error
        assert isinstance(found, RemoteSource)  # noqa: S101 (object stores are read as nothing else)
        return replace(found, files=replace(found.files, origin=origin))
    if scheme in {"file", ""}:
        return _on_this_machine(wanted, place, origin)
    raise RemoteError(
        f"{wanted.address} is kept at {printable(scheme)[:50]}://, which mlimg does not read",
        hint="mlimg reads what a tracking server serves, s3, gs, and folders",
    )


def _where(address: str, tracking: str, access: "Access") -> tuple[str, str, str]:
    """Name and version of the model, and the address of its files."""
    _settle(access)
    mlflow: Any = need("mlflow", "mlflow")
    if tracking.startswith(("http://", "https://")):
        check_origin("MLFLOW_TRACKING_URI", tracking)
    name, version, alias = registered_model(address)
    try:
        client = mlflow.MlflowClient(tracking, access.environ.get("MLFLOW_REGISTRY_URI") or tracking)
        if alias:
            version = str(client.get_model_version_by_alias(name, alias).version)
        place = str(client.get_model_version_download_uri(name, version))
        if place.startswith("models:/m-"):  # a model that was logged on its own
            place = str(client.get_logged_model(place.removeprefix("models:/")).artifact_location)
        elif place.startswith("runs:/"):
            run, _, below = place.removeprefix("runs:/").partition("/")
            place = f"{str(client.get_run(run).info.artifact_uri).rstrip('/')}/{below}"
    except Exception as error:  # MlflowException and what its HTTP and database clients raise
        raise _refusal(error, address) from None
    return name, version, place


def _settle(access: "Access") -> None:
    """Tell MLflow's client what it reads from the process's environment alone; what a person set there stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # who builds an image has not agreed to any
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(max(0, access.attempts - 1)))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(access.stall_seconds)))
    if access.ca_bundle is not None:
        os.environ.setdefault("MLFLOW_TRACKING_SERVER_CERT_PATH", str(access.ca_bundle))


def _served(wanted: Wanted, access: "Access", tracking: str, place: str, origin: dict[str, str]) -> RemoteSource:
    """The files that the tracking server itself keeps."""
    server = check_origin("MLFLOW_TRACKING_URI", tracking)
    parts = urlsplit(place)
    if parts.netloc and parts.netloc.lower() != urlsplit(server).netloc:
        raise RemoteError(f"{wanted.address} is kept by {printable(parts.netloc)[:200]}, another server: not asked")
    base = server + urlsplit(tracking).path.rstrip("/") + _ARTIFACTS
    root = parts.path.strip("/")
    web = Web(access, server, _credentials(access))
    entries = _entries(web, base, root)
    return listed(wanted, access, entries, origin)


def _entries(web: Web, base: str, root: str) -> Iterator[RemoteEntry]:
    """Walk the folders below `root`, one request each."""
    folders, seen, files = [""], 0, 0
    while folders:
        folder = folders.pop()
        seen += 1
        path = f"{root}/{folder}".rstrip("/")
        for name, is_folder, size in _listing(web.get(f"{base}?{urlencode({'path': path})}", _MAX_LISTING_BYTES)):
            below = f"{folder}/{name}".lstrip("/")
            if is_folder:
                folders.append(below)
                continue
            files += 1
            yield RemoteEntry(below, size, web.reader(f"{base}/{quote(f'{root}/{below}')}", size))
        if seen + len(folders) > _MAX_FOLDERS or files > MAX_FILES:
            raise LimitError(f"the model has more than {_MAX_FOLDERS} folders or {MAX_FILES} files")


def _listing(data: bytes) -> Iterator[tuple[str, bool, int]]:
    """Name, kind and length of what a folder holds. Raises RemoteError for an answer that makes no sense."""
    try:
        for item in json.loads(data).get("files", []):
            name, is_folder = str(item["path"]), bool(item.get("is_dir"))
            size = 0 if is_folder else int(item["file_size"])
            if size < 0 or not name or "/" in name or name in {".", ".."}:
                raise ValueError
            yield name, is_folder, size
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise RemoteError("the tracking server's list of a model's files makes no sense") from error


def _credentials(access: "Access") -> dict[str, str]:
    """The header for the tracking server. Raises CredentialsError for a token that no header can hold."""
    environ = access.environ
    if token := word(environ, "MLFLOW_TRACKING_TOKEN"):
        if token != environ["MLFLOW_TRACKING_TOKEN"]:
            raise CredentialsError("MLFLOW_TRACKING_TOKEN has blanks or line feeds around it", hint="set it without")
        return {"Authorization": f"Bearer {token}"}
    if user := environ.get("MLFLOW_TRACKING_USERNAME"):
        packed = base64.b64encode(f"{user}:{environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()).decode()
        return {"Authorization": f"Basic {packed}"}
    return {}


def _on_this_machine(wanted: Wanted, place: str, origin: dict[str, str]) -> LocalSource:
    """A folder that the registry names. The registry may be anybody's: it chooses no files of this machine."""
    folder = Path(unquote(urlsplit(place).path) if place.startswith("file:") else place).resolve()
    if not any(folder.is_relative_to(allowed) for allowed in wanted.allowed):
        raise ModelError(
            f"{wanted.address} is in the folder `{printable(str(folder))}`, outside the project",
            hint=f"to let the registry name it: --allow-path {printable(str(folder))}",
        )
    source = open_source(folder, selection=wanted.selection)
    return replace(source, files=replace(source.files, origin=origin))


def _refusal(error: Exception, address: str) -> MlimgError:
    said = printable(str(getattr(error, "message", "") or type(error).__name__))[:300]
    code = str(getattr(error, "error_code", ""))
    if code in {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"} or "401" in said[:60]:
        return CredentialsError(
            f"{address}: the registry refuses: {said}",
            hint="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND", "NOT_FOUND"}:
        return RemoteError(f"{address}: {said}", hint="check the name, and the version or alias")
    if code in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"} or isinstance(error, OSError):
        return RemoteTemporaryError(f"{address}: {said}")
    return RemoteError(f"{address}: {said}")
