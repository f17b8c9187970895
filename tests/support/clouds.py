"""The services that turn a cloud's identity into a registry's login, and the registries behind them, on loopback.

Every name of a cloud and every metadata address leads here while the ``with`` block lasts, each under its own TLS name,
so that what a client sends to whom can be read from the log. Nothing here checks a signature: the vectors do.
"""

import base64
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.support.faults import Answer, FaultServer, Request
from tests.support.registry import MemoryRegistry

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
GOOGLE = "europe-docker.pkg.dev"
AZURE = "team.azurecr.io"
ECR_API, STS = "api.ecr.eu-west-1.amazonaws.com", "sts.eu-west-1.amazonaws.com"
ENTRA = "login.microsoftonline.com"
METADATA, ECS, EKS = "169.254.169.254", "169.254.170.2", "169.254.170.23"
_TLS_NAMES = (ECR, GOOGLE, AZURE, ECR_API, STS, ENTRA)
_PLAIN_NAMES = (METADATA, ECS, EKS)

# What may be seen by whom; each is a secret of its own, so that the log tells where it went.
SECRETS = {
    "web-identity-canary": {STS},
    "pod-token-canary": {EKS, ECS},
    "secret-key-canary": set[str](),
    "session-token-canary": {ECR_API},
    "ecr-password-canary": {ECR},
    "imds-canary": {METADATA},
    "google-token-canary": {GOOGLE},
    "client-secret-canary": {ENTRA},
    "federated-canary": {ENTRA},
    "entra-token-canary": {AZURE},
    "refresh-canary": {AZURE},
}


def json_answer(value: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, headers, json.dumps(value).encode())


def _web_token(canary: str, ends: float) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": ends, "jti": canary}).encode()).decode().rstrip("=")
    return f"{canary}.{payload}.sig"


@dataclass
class Clouds:
    """The backend. A test replaces an entry of `hosts` to have that service answer otherwise."""

    lasts_seconds: float = 3600
    memory: MemoryRegistry = field(default_factory=MemoryRegistry)
    hosts: dict[str, Callable[[Request], Answer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory.put_manifest("app", "1", b'{"schemaVersion":2}')
        self.hosts = {
            STS: self.sts, ECR_API: self.ecr_api, ECR: self.ecr, ECS: self.keys, EKS: self.keys,
            METADATA: self.metadata, GOOGLE: self.google, ENTRA: self.entra, AZURE: self.azure,
        }  # fmt: skip

    def __call__(self, request: Request) -> Answer:
        return self.hosts[request.headers["Host"]](request)

    def sts(self, request: Request) -> Answer:
        form = parse_qs(request.body.decode())
        if form.get("WebIdentityToken") != ["web-identity-canary"] or form["Action"] != ["AssumeRoleWithWebIdentity"]:
            return Answer(403, body=b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>")
        return Answer(
            200,
            {"Content-Type": "text/xml"},
            b"<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
            b"<AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>secret-key-canary</SecretAccessKey>"
            b"<SessionToken>session-token-canary//==</SessionToken></Credentials>"
            b"</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        )

    def keys(self, request: Request) -> Answer:
        if request.headers.get("Authorization") != "pod-token-canary":
            return json_answer({"code": "AccessDeniedException", "message": "pod-token-canary"}, 401)
        return json_answer(
            {"AccessKeyId": "ASIAPOD", "SecretAccessKey": "secret-key-canary", "Token": "session-token-canary"}
        )

    def ecr_api(self, request: Request) -> Answer:
        if not request.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential=A"):
            return json_answer({"__type": "MissingAuthenticationTokenException"}, 400)
        token = base64.b64encode(b"AWS:ecr-password-canary").decode()
        ends = time.time() + self.lasts_seconds
        return json_answer({"authorizationData": [{"authorizationToken": token, "expiresAt": ends}]})

    def ecr(self, request: Request) -> Answer:
        login = "Basic " + base64.b64encode(b"AWS:ecr-password-canary").decode()
        if request.headers.get("Authorization") != login:
            return Answer(401, {"WWW-Authenticate": f'Basic realm="https://{ECR}/",service="ecr.amazonaws.com"'})
        return self.memory(request)

    def metadata(self, request: Request) -> Answer:
        if "/latest/" in request.path:
            return self.machine(request)
        if request.headers.get("Metadata-Flavor") == "Google" and request.path.startswith("/computeMetadata/v1/"):
            token = {"access_token": "google-token-canary", "expires_in": self.lasts_seconds}
            return json_answer(token, **{"Metadata-Flavor": "Google"})
        if request.headers.get("Metadata") == "true" and request.path.startswith("/metadata/identity/oauth2/token?"):
            return json_answer({"access_token": "entra-token-canary", "expires_in": str(self.lasts_seconds)})
        return Answer(404)

    def machine(self, request: Request) -> Answer:
        """EC2's, which wants a session: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ (IMDSv2)."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        if request.path == "/latest/api/token":
            sound = request.method == "PUT" and headers.get("x-aws-ec2-metadata-token-ttl-seconds", "").isdigit()
            return Answer(200, {}, b"imds-canary==") if sound else Answer(400)
        if headers.get("x-aws-ec2-metadata-token") != "imds-canary==":
            return Answer(401)
        roles = "/latest/meta-data/iam/security-credentials/"
        if request.path == roles:
            return Answer(200, {"Content-Type": "text/plain"}, b"serve")
        keys = {"AccessKeyId": "ASIAEC2", "SecretAccessKey": "secret-key-canary", "Token": "session-token-canary"}
        told = {"Code": "Success", "Type": "AWS-HMAC", "Expiration": "2100-01-01T00:00:00Z"}
        return json_answer(told | keys) if request.path == f"{roles}serve" else Answer(404)

    def google(self, request: Request) -> Answer:
        login = "Basic " + base64.b64encode(b"oauth2accesstoken:google-token-canary").decode()
        return self._by_token(request, GOOGLE, "/v2/token", request.headers.get("Authorization") == login)

    def azure(self, request: Request) -> Answer:
        form = {name: values[0] for name, values in parse_qs(request.body.decode("latin-1")).items()}
        if request.path == "/oauth2/exchange":
            if form.get("access_token") != "entra-token-canary" or form["service"] != AZURE:
                return json_answer({"errors": [{"code": "UNAUTHORIZED", "message": form.get("access_token")}]}, 401)
            return json_answer({"refresh_token": _web_token("refresh-canary", time.time() + self.lasts_seconds)})
        return self._by_token(request, AZURE, "/oauth2/token", "refresh-canary" in form.get("refresh_token", ""))

    def entra(self, request: Request) -> Answer:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        known = "federated-canary" if "client_assertion" in form else "client-secret-canary"
        proof = form.get("client_assertion") or form.get("client_secret")
        if proof != known or request.path != "/tenant-1/oauth2/v2.0/token":
            said = "AADSTS70021: no matching federated identity for federated-canary"
            return json_answer({"error": "invalid_client", "error_description": said}, 401)
        return json_answer({"access_token": "entra-token-canary", "expires_in": self.lasts_seconds})

    def _by_token(self, request: Request, host: str, path: str, allowed: bool) -> Answer:
        if request.path.startswith(path):
            return json_answer({"access_token": "opens"}) if allowed else Answer(401)
        if request.headers.get("Authorization") != "Bearer opens":
            return Answer(401, {"WWW-Authenticate": f'Bearer realm="https://{host}{path}",service="{host}"'})
        return self.memory(request)


@dataclass(frozen=True)
class Sky:
    """What a test sees: the backend, the log of all services, and the certificate to trust."""

    clouds: Clouds
    servers: tuple[FaultServer, FaultServer]
    ca_bundle: Path

    def asked(self, *hosts: str) -> list[Request]:
        """The requests to some hosts, to all of them without a name."""
        every = [request for server in self.servers for request in server.requests]
        return [request for request in every if not hosts or request.headers["Host"] in hosts]

    def seen_by(self, secret: str) -> set[str]:
        """Who was sent a secret, plain or in base64."""
        return {request.headers["Host"] for request in self.asked() if _holds(request, secret)}


def _holds(request: Request, secret: str) -> bool:
    text = " ".join([request.path, *request.headers.values(), request.body.decode("latin-1")])
    packed = [part.removeprefix("Basic ") for part in request.headers.values() if part.startswith("Basic ")]
    return secret in text or any(secret in base64.b64decode(part).decode("latin-1") for part in packed)


def _certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A certificate for all the names, and the server's context of it."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    names = ",".join(f"DNS:{name}" for name in _TLS_NAMES)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=clouds", "-addext", f"subjectAltName={names}"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@contextmanager
def sky(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sky]:
    """Serve all clouds. Names that are none of theirs, and other link-local addresses, are not reached."""
    clouds = Clouds()
    context, bundle = _certificate(folder)
    with FaultServer(clouds, tls=context) as tls, FaultServer(clouds) as plain:
        ports = dict.fromkeys(_TLS_NAMES, tls.host) | dict.fromkeys(_PLAIN_NAMES, plain.host)
        ask = socket.getaddrinfo

        def lead(host: str, *rest: object, **named: object) -> object:
            if host in ports:
                return ask("127.0.0.1", int(ports[host].partition(":")[2]), type=socket.SOCK_STREAM)
            if host != "127.0.0.1":
                raise socket.gaierror(f"a test asked for {host}")
            return ask(host, *rest, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "getaddrinfo", lead)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield Sky(clouds, (tls, plain), bundle)
