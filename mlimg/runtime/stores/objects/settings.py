"""From a place and the environment to a client of obstore: addresses, trust, identity, patience.

Variables are those of the clouds' own tools. What obstore would find in the process's environment is written out from
`Access.environ`, and held to our rules: no plain HTTP but on loopback and hosts named insecure, no unverified TLS.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mlimg.runtime.errors import CredentialsError, LocalIOError, RemoteError, SpecError, printable
from mlimg.runtime.hosts import is_loopback, serves_metadata
from mlimg.runtime.oci.transport import Access, proxy_for
from mlimg.runtime.reference import ObjectPlace
from mlimg.runtime.variables import switch

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

REQUEST_SECONDS: Final = 600  # for one part to be sent and stored
_READ_SECONDS: Final = 24 * 3600  # for a whole object; `stall_seconds` bounds silence
_CONNECT_SECONDS: Final = 15
_RETRY_SECONDS: Final = 180
_LONGEST_PAUSE_SECONDS: Final = 15
# Passed on by name: https://developmentseed.org/obstore/latest/api/store/aws/#obstore.store.S3Config
_AWS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_REQUEST_PAYER",
)
_GOOGLE: Final = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_BASE_URL",
    "GOOGLE_SKIP_SIGNATURE",
)
_AZURE: Final = (
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_SKIP_SIGNATURE",
)
# What of these a container is told by `mlimg run`: where a store is, and never who may read it.
PLACE_VARIABLES: Final = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_REQUEST_PAYER",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)


@dataclass(frozen=True, slots=True)
class Clients:
    """One place, ready to be asked. `reading` tries once, `writing` tries again by itself.

    With `signs` every address is signed here and asked for by our own HTTP, which follows no redirect: obstore follows
    them, and sends on what it must not (the session's token of AWS in a header, a SAS in `Referer`).
    """

    reading: "S3Store | GCSStore | AzureStore"
    writing: "S3Store | GCSStore | AzureStore"
    access: Access
    signs: bool
    at: Callable[[str], Any]  # a client that signs any one address of S3, whatever object it is asked for
    sas_base: str = ""  # an address to which path and SAS are added, where obstore cannot sign
    sas: str = ""


def endpoint_of(scheme: str, environ: Mapping[str, str]) -> str:
    """The address of a store that is not the cloud's own, "" for that."""
    names = {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "gs": ("GOOGLE_BASE_URL",),
        "az": ("AZURE_STORAGE_ENDPOINT",),
    }[scheme]
    return next((environ[name] for name in names if environ.get(name)), "")


def connect(place: ObjectPlace, access: Access) -> Clients:
    """Make the clients of a place. Nothing is asked yet.

    Raises SpecError for settings that make no sense or a server without obstore, RemoteError for an address that is
    not to be trusted, CredentialsError, LocalIOError.
    """
    environ = access.environ
    endpoint = endpoint_of(place.scheme, environ)
    plain = _check_endpoint(endpoint, access)
    if place.scheme == "s3" and environ.get("AWS_CA_BUNDLE"):
        access = replace(access, ca_bundle=Path(environ["AWS_CA_BUNDLE"]))
    client = _client_options(access, endpoint, plain=plain)
    stores = _obstore("store")
    config, keywords = _config(place, environ, endpoint)
    make = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}[place.scheme]
    retry = {
        "max_retries": max(0, access.attempts - 1),
        "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(seconds=access.backoff_seconds),
            "max_backoff": timedelta(seconds=_LONGEST_PAUSE_SECONDS),
            "base": 2,
        },
    }
    try:
        reading = getattr(stores, make)(
            place.bucket,
            prefix=str(place.prefix) if place.prefix.parts else None,
            config=config,
            client_options={
                **client,
                "timeout": timedelta(seconds=_READ_SECONDS),
                "read_timeout": timedelta(seconds=access.stall_seconds),
            },
            retry_config={**retry, "max_retries": 0},
            **keywords,
        )
        writing = getattr(stores, make)(
            place.bucket,
            prefix=str(place.prefix) if place.prefix.parts else None,
            config=config,
            client_options={**client, "timeout": timedelta(seconds=REQUEST_SECONDS)},
            retry_config=retry,
            **keywords,
        )
    except Exception as error:  # obstore's base class, and ValueError; either may quote a key
        raise SpecError(f"{place}: the store's settings make no sense ({type(error).__name__})") from None

    def at(address: str) -> Any:
        whole = {**config, "aws_endpoint_url": address, "aws_virtual_hosted_style_request": True}
        return stores.S3Store(place.bucket, config=whole, client_options=client, **keywords)

    anonymous = switch(environ, "AWS_SKIP_SIGNATURE", default=False)
    sas = environ.get("AZURE_STORAGE_SAS_TOKEN", "").removeprefix("?") if place.scheme == "az" else ""
    base = endpoint or f"https://{environ.get('AZURE_STORAGE_ACCOUNT_NAME', '')}.blob.core.windows.net"
    return Clients(
        reading,
        writing,
        access,
        signs=(place.scheme == "s3" and not anonymous) or bool(sas),
        at=at,
        sas_base=f"{base.rstrip('/')}/{place.bucket}" if sas else "",
        sas=sas,
    )


def _obstore(module: str) -> Any:
    try:
        return importlib.import_module(f"obstore.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "obstore":
            raise
        raise SpecError(
            "obstore is not installed here, so no model can be fetched from an object store",
            hint="a server has it when it is built with model.store naming one, or with `obstore` in its requirements",
        ) from None


def _check_endpoint(endpoint: str, access: Access) -> bool:
    """Whether an endpoint speaks plain HTTP, and may. Raises RemoteError, SpecError."""
    if not endpoint:
        return False
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in {"http", "https"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise SpecError("the store's endpoint is no address such as https://s3.example.com")
    shown = printable(parts.netloc)[:200]
    if serves_metadata(parts.netloc):
        raise RemoteError(f"{shown} is the machine's metadata service, not a store")
    if parts.scheme == "http" and not (is_loopback(parts.netloc) or parts.netloc in access.insecure):
        raise RemoteError(
            f"{shown} speaks plain HTTP",
            hint="name it in build.insecure_registries or MLIMG_INSECURE_REGISTRIES if that is wanted",
        )
    return parts.scheme == "http"


def _client_options(access: Access, endpoint: str, *, plain: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "allow_http": plain,
        "allow_invalid_certificates": False,
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "user_agent": "mlimg",
    }
    if access.ca_bundle is not None:
        try:
            options["root_certificate"] = access.ca_bundle.read_bytes()
        except OSError as error:
            raise LocalIOError(f"cannot use the CA bundle {access.ca_bundle}: {error.strerror}") from error
    host = urlsplit(endpoint).hostname or ""
    if host and is_loopback(host):
        # This machine is always reached directly, whatever proxy the environment names.
        elsewhere = proxy_for(urlsplit("https://example.com")) or proxy_for(urlsplit("http://example.com"))
        if elsewhere:
            options |= {"proxy_url": elsewhere, "proxy_excludes": host}
    return options


def _config(place: ObjectPlace, environ: Mapping[str, str], endpoint: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a store, and the arguments that are none."""
    names = {"s3": _AWS, "gs": _GOOGLE, "az": _AZURE}[place.scheme]
    config: dict[str, Any] = {name.lower(): environ[name] for name in names if environ.get(name)}
    if place.scheme != "s3":
        if endpoint and place.scheme == "az":
            config["azure_storage_endpoint"] = endpoint
        return config, {}
    # Of each part that is sent: the store refuses what arrives with another content.
    config["aws_checksum_algorithm"] = environ.get("AWS_CHECKSUM_ALGORITHM") or "SHA256"
    config["aws_skip_signature"] = switch(environ, "AWS_SKIP_SIGNATURE", default=False)
    virtual = switch(environ, "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", default=False)
    config["aws_virtual_hosted_style_request"] = virtual
    if endpoint:
        parts = urlsplit(endpoint)
        netloc = f"{place.bucket}.{parts.netloc}" if virtual else parts.netloc
        config["aws_endpoint_url"] = parts._replace(netloc=netloc).geturl().rstrip("/")
    return config, _profile(environ)


def _profile(environ: Mapping[str, str]) -> dict[str, Any]:
    """The credentials of a profile, by boto3 where that is installed; obstore itself reads none."""
    elsewhere = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
    in_container = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    named = environ.get("AWS_PROFILE", "")
    if not named and any(environ.get(name) for name in (*elsewhere, *in_container)):
        return {}
    home = Path(environ.get("HOME") or "/nonexistent")
    files = [
        Path(environ.get("AWS_CONFIG_FILE") or home / ".aws" / "config"),
        Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials"),
    ]
    if not named and not any(file.is_file() for file in files):
        return {}
    try:
        boto3 = importlib.import_module("boto3")
        provider = importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider
    except ModuleNotFoundError:
        if not named:
            return {}  # the other places are looked at
        raise CredentialsError(
            f"AWS_PROFILE={printable(named)[:100]}: profiles are read by boto3, which is not installed",
            hint="pip install 'mlimg[aws]'",
        ) from None
    try:
        return {"credential_provider": provider(boto3.Session(profile_name=named or None))}
    except Exception as error:  # botocore's own, and ValueError where a profile gives nothing
        if not named:
            return {}
        raise CredentialsError(f"AWS_PROFILE={printable(named)[:100]}: {type(error).__name__}") from None
