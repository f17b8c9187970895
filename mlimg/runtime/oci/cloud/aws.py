"""Amazon ECR: keys of the environment, of a web identity (IRSA), of the container's credential service or the machine.

https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetAuthorizationToken.html
https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html (IMDSv2)
"""

import base64
import binascii
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from mlimg.runtime.errors import CredentialsError, RemoteTemporaryError
from mlimg.runtime.hosts import host_of, is_loopback
from mlimg.runtime.oci.cloud.exchange import Exchange, Lease, Reply, endpoint, read_token, refused, word
from mlimg.runtime.oci.cloud.signing import AwsKeys, Scope, sign_post
from mlimg.runtime.oci.credentials import Credentials
from mlimg.runtime.variables import switch

_CLASSIC = re.compile(r"[0-9]{12}\.dkr\.ecr(-fips)?\.([a-z0-9-]{1,40})\.(amazonaws\.com(?:\.cn)?)")
_DUAL_STACK = re.compile(r"[0-9]{12}\.dkr-ecr(-fips)?\.([a-z0-9-]{1,40})\.on\.aws")
_TARGET: Final = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
# Over plain HTTP only to this machine and to where ECS and EKS serve keys from.
_CONTAINER_HOSTS: Final = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23"})
_RELATIVE_ROOT: Final = "http://169.254.170.2"
_MACHINE: Final = "http://169.254.169.254/latest"
_ROLES: Final = "meta-data/iam/security-credentials"
_SESSION_ENDS: Final = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
_CLOCK_CODES: Final = frozenset({"InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired"})


@dataclass(frozen=True, slots=True)
class EcrHost:
    """What a registry's name says of its region's services."""

    region: str
    ecr: str  # the origin of the ECR API
    sts: str  # the origin of the region's token service

    @classmethod
    def parse(cls, registry: str) -> "EcrHost | None":
        """Read a registry's host; None for what is no private registry of AWS."""
        if match := _CLASSIC.fullmatch(registry):
            fips, region, domain = match.groups(default="")
            return cls(region, f"https://api.ecr{fips}.{region}.{domain}", f"https://sts{fips}.{region}.{domain}")
        if match := _DUAL_STACK.fullmatch(registry):
            fips, region = match.groups(default="")
            return cls(region, f"https://ecr{fips}.{region}.api.aws", f"https://sts{fips}.{region}.api.aws")
        return None


class Aws:
    """The private registries of AWS, in every region and in China."""

    def __init__(self, environ: Mapping[str, str], exchange: Exchange) -> None:
        self._environ = environ
        self._exchange = exchange

    def serves(self, registry: str) -> bool:
        """Whether this is a private registry of AWS."""
        return EcrHost.parse(registry) is not None

    def lease(self, registry: str) -> Lease | None:
        """The registry's token, good for twelve hours; None without keys or a role."""
        host = EcrHost.parse(registry)
        keys = self._keys(host) if host else None
        if host is None or keys is None:
            return None
        what = f"Amazon ECR in {host.region}"
        url = endpoint(self._environ, "AWS_ENDPOINT_URL_ECR", host.ecr)
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": _TARGET}
        signed = sign_post(url, b"{}", headers, keys, Scope("ecr", host.region, time.time()))
        return _parse_token(what, self._exchange.ask(what, f"{url}/", signed, b"{}"))

    def _keys(self, host: EcrHost) -> AwsKeys | None:
        environ = self._environ
        if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
            return AwsKeys(*(word(environ, name) for name in names))
        if environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") and environ.get("AWS_ROLE_ARN"):
            return self._assumed(host)
        if environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") or environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
            return self._of_container()
        if switch(environ, "AWS_EC2_METADATA_DISABLED", default=False):
            return None
        return self._of_machine()

    def _assumed(self, host: EcrHost) -> AwsKeys:
        """The keys of the role that a service account may take: IAM roles for service accounts."""
        what = f"AWS STS in {host.region}"
        reply = self._exchange.ask(
            what,
            endpoint(self._environ, "AWS_ENDPOINT_URL_STS", host.sts) + "/",
            {},
            {
                "Action": "AssumeRoleWithWebIdentity",
                "Version": "2011-06-15",
                "RoleArn": self._environ["AWS_ROLE_ARN"],
                "RoleSessionName": self._environ.get("AWS_ROLE_SESSION_NAME") or "mlimg",
                "WebIdentityToken": read_token(
                    self._environ["AWS_WEB_IDENTITY_TOKEN_FILE"], "AWS_WEB_IDENTITY_TOKEN_FILE"
                ),
            },
        )
        found = [_element(reply, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")]
        if reply.status != 200 or not all(found):
            raise refused(
                what, reply, _element(reply, "Code"), "the role's trust policy must name this service account"
            )
        return AwsKeys(*found)

    def _of_container(self) -> AwsKeys:
        """The keys that ECS or the EKS Pod Identity agent serves to this container."""
        what = "the container's AWS credential service"
        if relative := self._environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
            # Of a value such as ``@evil`` nothing must become a host.
            url = _RELATIVE_ROOT + "/" + relative.lstrip("/")
        else:
            url = self._environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
        if not _is_container_service(url):
            raise CredentialsError(
                "AWS_CONTAINER_CREDENTIALS_FULL_URI is neither https nor a place where AWS serves keys: not asked"
            )
        token = word(self._environ, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
        if file := self._environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            token = read_token(file, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        reply = self._exchange.metadata(what, url, {"Authorization": token} if token else {})
        if reply is None:
            raise RemoteTemporaryError(f"{what} gives no answer", hint="the AWS_CONTAINER_* variables name it")
        return _parse_keys(what, reply, "is a role attached to the task or the service account?")

    def _of_machine(self) -> AwsKeys | None:
        """The keys of an EC2 machine's role; None for a machine without one, and for all other machines."""
        what = "the metadata service of EC2"
        session = self._exchange.metadata(what, f"{_MACHINE}/api/token", _SESSION_ENDS, "PUT")
        if session is None or not session.line:
            return None
        headers = {"X-aws-ec2-metadata-token": session.line}
        role = self._exchange.metadata(what, f"{_MACHINE}/{_ROLES}/", headers)
        if role is None or not role.line:
            return None
        reply = self._exchange.metadata(what, f"{_MACHINE}/{_ROLES}/{quote(role.line, safe='')}", headers)
        return _parse_keys(what, reply, "may EC2 take the machine's role?") if reply else None


def _parse_keys(what: str, reply: Reply, hint: str) -> AwsKeys:
    keys = [reply.text(name) for name in ("AccessKeyId", "SecretAccessKey", "Token")]
    if reply.status != 200 or not all(keys[:2]):
        raise refused(what, reply, reply.text("code") or reply.text("Code"), hint)
    return AwsKeys(*keys)


def _is_container_service(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    plain = is_loopback(parts.netloc) or host_of(parts.netloc) in _CONTAINER_HOSTS
    return (
        bool(parts.hostname) and not parts.username and (parts.scheme == "https" or (parts.scheme == "http" and plain))
    )


def _element(reply: Reply, name: str) -> str:
    """The text of an element of STS's XML, whose values are words without entities; "" where there is none."""
    match = re.search(f"<{name}>([!-%'-;=?-~]{{1,16384}})</{name}>", reply.data.decode("ascii", "replace"))
    return match[1] if match else ""


def _parse_token(what: str, reply: Reply) -> Lease:
    kind = reply.text("__type").rpartition("#")[2]
    hint = "is this machine's clock right?" if kind in _CLOCK_CODES else ""
    try:
        (entry,) = reply.values["authorizationData"]  # type: ignore[misc]
        packed, ends = entry["authorizationToken"], float(entry["expiresAt"])  # type: ignore[has-type]
        username, colon, password = base64.b64decode(packed, validate=True).decode("ascii").partition(":")
    except (LookupError, TypeError, ValueError, OverflowError, binascii.Error):
        colon = ""
    if reply.status != 200 or not colon:
        raise refused(what, reply, kind, hint or "the role needs ecr:GetAuthorizationToken")
    return Lease(Credentials(username, password), ends)
