"""Logins that a cloud's identity earns: how each is had, kept, refused, shown to nobody else. Bars: E15, E16, E17."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mlimg.runtime.errors import CredentialsError, LocalIOError, RemoteTemporaryError
from mlimg.runtime.oci import Access, Registry, registry_credentials
from mlimg.runtime.oci.cloud import CloudIdentity
from mlimg.runtime.oci.cloud.signing import AwsKeys, Scope, sign_post
from mlimg.runtime.oci.credentials import Credentials
from mlimg.runtime.oci.transport import proxy_for
from mlimg.runtime.reference import ImageReference
from tests.support.clouds import (
    AZURE,
    ECR,
    ECR_API,
    ECS,
    EKS,
    ENTRA,
    GOOGLE,
    METADATA,
    SECRETS,
    STS,
    Sky,
    json_answer,
    sky,
)
from tests.support.faults import Answer, Fault, FaultServer, Request, dripping, endless


@pytest.fixture
def above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sky]:
    monkeypatch.setattr("mlimg.runtime.oci.cloud.exchange._ANSWER_SECONDS", 1.0)
    monkeypatch.setattr("mlimg.runtime.oci.cloud.exchange._METADATA_ANSWER_SECONDS", 0.5)
    with sky(tmp_path, monkeypatch) as clouds:
        yield clouds


IDENTITIES: dict[str, tuple[str, dict[str, str]]] = {
    "irsa": (
        ECR,
        {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/serve", "AWS_WEB_IDENTITY_TOKEN_FILE": "web-identity-canary"},
    ),
    "pod identity": (
        ECR,
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{EKS}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "pod-token-canary",
        },
    ),
    "ecs": (
        ECR,
        {
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/1",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "pod-token-canary",
        },
    ),
    "keys": (
        ECR,
        {
            "AWS_ACCESS_KEY_ID": "AKIA",
            "AWS_SECRET_ACCESS_KEY": "secret-key-canary\n",  # as a file's last line gives it
            "AWS_SESSION_TOKEN": "session-token-canary",
        },
    ),
    "machine": (ECR, {}),
    "google": (GOOGLE, {}),
    "managed identity": (AZURE, {}),
    "workload identity": (
        AZURE,
        {
            "AZURE_CLIENT_ID": "client-1",
            "AZURE_TENANT_ID": "tenant-1",
            "AZURE_FEDERATED_TOKEN_FILE": "federated-canary",
        },
    ),
    "service principal": (
        AZURE,
        {"AZURE_CLIENT_ID": "client-1", "AZURE_TENANT_ID": "tenant-1", "AZURE_CLIENT_SECRET": "client-secret-canary\n"},
    ),
}
"""Every way to an identity: its registry, and the variables that platforms set (of a ``_FILE`` the content)."""

Identity = Callable[[str], tuple[str, dict[str, str]]]


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    def write(name: str) -> tuple[str, dict[str, str]]:
        registry, variables = IDENTITIES[name]
        environ = dict(variables)
        for variable in [variable for variable in environ if variable.endswith("_FILE")]:
            path = tmp_path / "token"
            path.write_text(environ[variable] + "\n")
            environ[variable] = str(path)
        return registry, environ

    return write


def find(above: Sky, registry: str, environ: Mapping[str, str]) -> Credentials | None:
    return CloudIdentity(environ, above.ca_bundle)(registry)


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_image_of_the_clouds_registry_is_resolved_with_the_identity_alone(
    above: Sky, identity: Identity, name: str
) -> None:
    registry, environ = identity(name)
    reference = ImageReference.parse(f"{registry}/app:1")
    access = Access(registry_credentials(environ, above.ca_bundle), ca_bundle=above.ca_bundle)
    assert Registry(access).resolve(reference)
    for secret, allowed in SECRETS.items():
        assert above.seen_by(secret) <= allowed, secret
    without = Access(registry_credentials({"MLIMG_OFFLINE": "on", **environ}), ca_bundle=above.ca_bundle)
    with pytest.raises(CredentialsError):
        Registry(without).resolve(reference)


def test_every_secret_of_the_log_was_seen_where_it_belongs(above: Sky, identity: Identity) -> None:
    """The twin of the test above: its canaries do show up, where they may."""
    for name in IDENTITIES:
        registry, environ = identity(name)
        access = Access(registry_credentials(environ, above.ca_bundle), ca_bundle=above.ca_bundle)
        assert Registry(access).resolve(ImageReference.parse(f"{registry}/app:1"))
    assert {secret: above.seen_by(secret) for secret in SECRETS} == SECRETS


@pytest.mark.parametrize(
    ("body", "headers", "keys", "scope", "signature"),
    [
        # `post-vanilla` of the test suite that AWS publishes.
        (
            b"", {}, AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            ("https://example.amazonaws.com/", "service", "us-east-1"),
            "SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        # What botocore 1.43.11 makes of the request that ECR gets, without and with a session's token.
        (
            b"{}",
            {
                "Content-Type": "application/x-amz-json-1.1",
                "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            },
            AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            (f"https://{ECR_API}/", "ecr", "eu-west-1"),
            "SignedHeaders=content-type;host;x-amz-date;x-amz-target, "
            "Signature=ce953a52a1215175c49d9a611ae10b5db817f776f0ad5d2a6ff9b0198dd390bc",
        ),
        (
            b"{}",
            {
                "Content-Type": "application/x-amz-json-1.1",
                "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            },
            AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "TOKEN/+="),
            (f"https://{ECR_API}/", "ecr", "eu-west-1"),
            "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, "
            "Signature=594030bc52d851455004945489286f15eaf7218c4f8993bffb7fff2bce8fad24",
        ),
    ],
    ids=["published", "keys", "session"],
)  # fmt: skip
def test_requests_are_signed_as_aws_does(
    body: bytes, headers: dict[str, str], keys: AwsKeys, scope: tuple[str, str, str], signature: str
) -> None:
    url, service, region = scope
    noon = 1440938160.0  # 2015-08-30 12:36:00
    sent = sign_post(url, body, headers, keys, Scope(service, region, noon))
    place = f"Credential=AKIDEXAMPLE/20150830/{region}/{service}/aws4_request"
    assert sent["Authorization"] == f"AWS4-HMAC-SHA256 {place}, {signature}"
    assert sent["X-Amz-Date"] == "20150830T123600Z"
    assert sent.get("X-Amz-Security-Token", "") == keys.session_token
    assert "wJalr" not in repr(keys)
    assert "TOKEN" not in repr(keys)


@pytest.mark.parametrize(
    ("registry", "api", "sts"),
    [
        (ECR, ECR_API, STS),
        (
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "api.ecr.cn-north-1.amazonaws.com.cn",
            "sts.cn-north-1.amazonaws.com.cn",
        ),
        (
            "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com",
            "api.ecr-fips.us-east-1.amazonaws.com",
            "sts-fips.us-east-1.amazonaws.com",
        ),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "ecr.eu-west-1.api.aws", "sts.eu-west-1.api.aws"),
    ],
)
def test_the_services_asked_are_those_of_the_registrys_own_region(registry: str, api: str, sts: str) -> None:
    from mlimg.runtime.oci.cloud.aws import EcrHost  # noqa: PLC0415

    host = EcrHost.parse(registry)
    assert host is not None
    assert (host.ecr, host.sts) == (f"https://{api}", f"https://{sts}")


@pytest.mark.parametrize(
    "registry",
    [
        "docker.io", "registry.example.com", "localhost:5000", "public.ecr.aws", f"{ECR}.evil.com", f"{ECR}:444",
        f"evil.com.{ECR}", "12345678901.dkr.ecr.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com", "evilgcr.io",
        "gcr.io.evil.com", "pkg.dev.evil.com", "evilpkg.dev", "azurecr.io", "evilazurecr.io", f"{AZURE}.evil.com",
        "team.azurecr.io.", "team.azurecr.io@evil.com",
    ],
)  # fmt: skip
def test_e15_no_identity_is_looked_for_on_behalf_of_another_registry(
    above: Sky, identity: Identity, registry: str
) -> None:
    every = {key: text for name in IDENTITIES for key, text in identity(name)[1].items()}
    assert find(above, registry, every) is None
    assert above.asked() == []


def test_what_is_configured_wins_over_the_identity(above: Sky, identity: Identity, tmp_path: Path) -> None:
    registry, environ = identity("irsa")
    packed = base64.b64encode(b"alice:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry: {"auth": packed}}}))
    known = registry_credentials(environ | {"DOCKER_CONFIG": str(tmp_path)}, above.ca_bundle)
    assert known(registry) == Credentials("alice", "secret")
    assert above.asked() == []
    (tmp_path / "config.json").write_text("{}")
    assert known(registry) == Credentials("AWS", "ecr-password-canary")


def test_without_variables_aws_asks_the_machine_unless_that_is_forbidden(above: Sky) -> None:
    half = {"AWS_ROLE_ARN": "arn", "AWS_ACCESS_KEY_ID": "AKIA"}
    assert find(above, ECR, half | {"AWS_EC2_METADATA_DISABLED": "true"}) is None
    assert above.asked() == []
    assert find(above, ECR, half)


@pytest.mark.parametrize(
    ("path", "status"), [("api/token", 403), ("api/token", 404), ("security-credentials/", 404)], ids=str
)
def test_a_machine_that_is_not_ec2s_or_has_no_role_has_no_identity(above: Sky, path: str, status: int) -> None:
    above.servers[1].faults.append(fault := Fault("GET|PUT", f"{path}$", answer=Answer(status)))
    assert find(above, ECR, {}) is None
    assert fault.fired == 1
    assert above.asked(ECR_API) == []


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_login_is_kept_until_shortly_before_it_ends(
    above: Sky, identity: Identity, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, environ = identity(name)
    known = CloudIdentity(environ, above.ca_bundle)
    first = known(registry)
    count = len(above.asked())
    now = time.time()
    monkeypatch.setattr("mlimg.runtime.oci.cloud.time.time", lambda: now + 3500)
    assert known(registry) == first
    assert len(above.asked()) == count
    monkeypatch.setattr("mlimg.runtime.oci.cloud.time.time", lambda: now + 3590)
    assert known(registry) is not None
    assert len(above.asked()) == 2 * count


def test_a_token_that_the_platform_renewed_is_read_again(above: Sky, identity: Identity) -> None:
    above.clouds.lasts_seconds = 30
    _, environ = identity("pod identity")
    file = Path(environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
    file.write_text("old")
    known = CloudIdentity(environ, above.ca_bundle)
    with pytest.raises(CredentialsError, match="AccessDeniedException"):
        known(ECR)
    file.write_text("pod-token-canary")
    assert known(ECR)
    assert [request.headers["Authorization"] for request in above.asked(EKS)] == ["old", "pod-token-canary"]


def test_endpoints_can_be_given(above: Sky, identity: Identity) -> None:
    elsewhere = above.servers[1].host  # plain HTTP, on loopback
    above.clouds.hosts[elsewhere] = lambda request: (
        above.clouds.sts(request) if b"AssumeRole" in request.body else above.clouds.ecr_api(request)
    )
    _, environ = identity("irsa")
    url = f"http://{elsewhere}/"
    environ |= {"AWS_ENDPOINT_URL_STS": url, "AWS_ENDPOINT_URL_ECR": url}
    assert find(above, ECR, environ) == Credentials("AWS", "ecr-password-canary")
    assert len(above.asked(elsewhere)) == 2
    assert above.asked(STS, ECR_API) == []


def test_other_metadata_addresses_can_be_given(above: Sky) -> None:
    elsewhere = above.servers[1].host
    above.clouds.hosts[elsewhere] = above.clouds.metadata
    assert find(above, GOOGLE, {"GCE_METADATA_HOST": elsewhere})
    assert find(above, AZURE, {"AZURE_POD_IDENTITY_AUTHORITY_HOST": f"http://{elsewhere}/", "AZURE_CLIENT_ID": "c&d"})
    assert above.asked(METADATA) == []
    assert above.asked(elsewhere)[1].path.endswith("&client_id=c%26d")


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("irsa", "AWS_ENDPOINT_URL_STS", f"http://{STS}"),
        ("keys", "AWS_ENDPOINT_URL_ECR", f"http://{ECR_API}"),
        ("keys", "AWS_ENDPOINT_URL_ECR", "https://[::1"),
        ("keys", "AWS_SECRET_ACCESS_KEY", "secret-key-canary\r\nX: 1"),
        ("workload identity", "AZURE_AUTHORITY_HOST", f"http://{ENTRA}"),
        ("pod identity", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://evil.example.com/"),
        ("pod identity", "AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{METADATA}/"),
        ("pod identity", "AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{EKS}@evil.example.com/"),
        ("ecs", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod-token-canary\nX: 1"),
    ],
)
def test_e15_an_identity_goes_nowhere_in_plain_text(
    above: Sky, identity: Identity, name: str, variable: str, value: str
) -> None:
    registry, environ = identity(name)
    with pytest.raises(CredentialsError, match=variable) as caught:
        find(above, registry, environ | {variable: value})
    assert "canary" not in caught.value.message
    assert above.asked() == []


def test_a_relative_address_stays_one(above: Sky, identity: Identity) -> None:
    _, environ = identity("ecs")
    environ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "@evil.example.com/"
    assert find(above, ECR, environ)
    assert above.asked(ECS)[0].path == "/@evil.example.com/"


def test_metadata_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example.com:3128")
    monkeypatch.setenv("no_proxy", "")
    for host in (METADATA, ECS, EKS, "[fd00:ec2::23]"):
        assert proxy_for(urlsplit(f"http://{host}/")) == ""
    assert proxy_for(urlsplit("http://example.com/")) == "http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("name", "host", "answer", "told"),
    [
        ("irsa", STS, Answer(403, {}, b"<Code>AccessDenied</Code><Message>web-identity-canary"), "403 (AccessDenied)"),
        ("irsa", STS, Answer(200, {}, b"<AccessKeyId>A&#10;</AccessKeyId>"), "answers 200"),
        ("irsa", STS, Answer(307, {"Location": "https://evil.example.com/"}), "redirects to another place"),
        ("pod identity", EKS, Answer(200, {}, b"[" * 200_000), "answers 200"),
        (
            "ecs",
            ECS,
            Answer(200, {}, b'{"AccessKeyId": "A", "SecretAccessKey": "secret-key-canary\\n"}'),
            "answers 200",
        ),
        (
            "keys",
            ECR_API,
            Answer(400, {}, b'{"__type": "com.amazon#InvalidSignatureException", "message": "session-token-canary"}'),
            "400 (InvalidSignatureException)",
        ),
        ("keys", ECR_API, json_answer({"authorizationData": []}), "answers 200"),
        ("keys", ECR_API, json_answer({"authorizationData": [{"authorizationToken": "%%", "expiresAt": 1}]}), "200"),
        ("keys", ECR_API, Answer(200, {}, b"session-token-canary"), "answers 200"),
        (
            "keys",
            ECR_API,
            json_answer({"authorizationData": [{"authorizationToken": "QVdTOng=", "expiresAt": 10**400}]}),
            "answers 200",
        ),
        (
            "google",
            METADATA,
            json_answer({"access_token": "t", "expires_in": 10**400}, **{"Metadata-Flavor": "Google"}),
            "200",
        ),
        (
            "google",
            METADATA,
            json_answer({"access_token": "a\nb", "expires_in": 9}, **{"Metadata-Flavor": "Google"}),
            "200",
        ),
        (
            "google",
            METADATA,
            json_answer({"error": "insufficient"}, 403, **{"Metadata-Flavor": "Google"}),
            "insufficient",
        ),
        (
            "machine",
            METADATA,
            Answer(200, {}, b'{"Code": "AssumeRoleUnauthorizedAccess", "Message": "imds-canary"}'),
            "200 (AssumeRoleUnauthorizedAccess)",
        ),
        ("workload identity", ENTRA, json_answer({"access_token": 7}), "answers 200"),
        (
            "service principal",
            ENTRA,
            json_answer({"error": "invalid_client", "error_description": "AADSTS7000222: client-secret-canary"}, 401),
            "401 (invalid_client AADSTS7000222)",
        ),
        ("workload identity", AZURE, json_answer({"errors": [{"message": "entra-token-canary"}]}, 401), "answers 401"),
        ("managed identity", AZURE, json_answer({"refresh_token": ""}), "answers 200"),
    ],
)
def test_a_service_that_gives_no_login_is_a_refusal_that_shows_no_secret(  # noqa: PLR0917
    above: Sky, identity: Identity, name: str, host: str, answer: Answer, told: str
) -> None:
    registry, environ = identity(name)
    above.clouds.hosts[host] = lambda _request: answer
    with pytest.raises(CredentialsError) as caught:
        find(above, registry, environ)
    assert told in caught.value.message
    assert "canary" not in f"{caught.value.message} {caught.value.hint}"
    assert above.asked(host)
    assert all("evil" not in request.headers["Host"] for request in above.asked())


def test_the_twins_of_those_refusals_are_logins(above: Sky, identity: Identity) -> None:
    for name in IDENTITIES:
        registry, environ = identity(name)
        found = find(above, registry, environ)
        assert found is not None
        assert "canary" not in repr(found)


def test_a_wrong_clock_is_named(above: Sky, identity: Identity) -> None:
    _, environ = identity("keys")
    above.clouds.hosts[ECR_API] = lambda _request: json_answer({"__type": "InvalidSignatureException"}, 400)
    with pytest.raises(CredentialsError) as caught:
        find(above, ECR, environ)
    assert "clock" in caught.value.hint


@pytest.mark.parametrize("name", ["irsa", "pod identity", "workload identity"])
def test_a_missing_or_empty_token_file_is_named(above: Sky, identity: Identity, name: str) -> None:
    registry, environ = identity(name)
    variable = next(key for key in environ if key.endswith("_FILE"))
    Path(environ[variable]).write_text("\n")
    with pytest.raises(CredentialsError, match=variable):
        find(above, registry, environ)
    Path(environ[variable]).unlink()
    with pytest.raises(LocalIOError, match=variable):
        find(above, registry, environ)
    assert above.asked() == []


@pytest.mark.parametrize(
    "body",
    [endless, lambda: dripping(b" ", 0.01)],
    ids=["1 GiB", "drip"],
)
@pytest.mark.parametrize("name", ["irsa", "keys", "pod identity", "google", "workload identity"])
def test_e17_an_answer_without_end_is_a_refusal_in_time(
    above: Sky, identity: Identity, name: str, body: Callable[[], Iterator[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimg.runtime.oci.cloud.exchange._ANSWER_SECONDS", 0.2)
    first = {"irsa": STS, "keys": ECR_API, "pod identity": EKS, "google": METADATA, "workload identity": ENTRA}[name]
    registry, environ = identity(name)
    above.clouds.hosts[first] = lambda _request: Answer(200, {"Metadata-Flavor": "Google"}, body())
    started = time.monotonic()
    # A drip is silence to a metadata service's short patience, and without one there is no identity.
    with suppress(CredentialsError, RemoteTemporaryError):
        assert find(above, registry, environ) is None
        assert name == "google"
    assert above.asked(first)
    assert time.monotonic() - started < 20


def test_a_service_that_fails_in_passing_is_asked_again(above: Sky, identity: Identity) -> None:
    _, environ = identity("irsa")
    fault = Fault("POST", answer=Answer(503, {"Retry-After": "0"}), times=2)
    above.servers[0].faults.append(fault)
    assert find(above, ECR, environ)
    assert fault.fired == 2
    fault.times = 99
    with pytest.raises(RemoteTemporaryError, match="AWS STS in eu-west-1 gives no answer"):
        find(above, ECR, environ)
    assert fault.fired == 5


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(("name", "host"), [("google", METADATA), ("machine", METADATA), ("ecs", ECS)])
def test_a_metadata_service_that_cannot_answer_now_is_asked_again_and_is_not_none(
    above: Sky, identity: Identity, name: str, host: str, status: int
) -> None:
    registry, environ = identity(name)
    known = CloudIdentity(environ, above.ca_bundle)
    ours, left = above.clouds.hosts[host], [Answer(status, {"Retry-After": "0"})] * 5
    above.clouds.hosts[host] = lambda request: left.pop() if left else ours(request)
    with pytest.raises(RemoteTemporaryError, match="gives no answer"):
        known(registry)
    assert len(left) == 2
    assert known(registry) is not None


def test_a_login_that_ends_beyond_all_numbers_is_asked_for_again_soon(above: Sky, identity: Identity) -> None:
    registry, environ = identity("managed identity")
    payload = base64.urlsafe_b64encode(b'{"exp":1' + b"0" * 400 + b"}").decode().rstrip("=")
    above.clouds.hosts[AZURE] = lambda _request: json_answer({"refresh_token": f"a.{payload}.c"})
    found = find(above, registry, environ)
    assert found is not None
    assert found.identity_token == f"a.{payload}.c"


@pytest.mark.parametrize("registry", [GOOGLE, AZURE, ECR, "gcr.io", "eu.gcr.io"])
def test_a_machine_without_metadata_has_no_identity_and_is_asked_once(
    above: Sky, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    above.servers[1].faults.append(fault := Fault(stall_at=0, answer=Answer(200, {}, b"{}"), times=9))
    known = CloudIdentity({}, above.ca_bundle)
    assert known(registry) is None
    assert known(registry) is None
    assert fault.fired == 1
    above.servers[1].open_stalls.set()
    above.servers[1].faults.clear()
    now = time.time()
    monkeypatch.setattr("mlimg.runtime.oci.cloud.time.time", lambda: now + 301)
    assert known(registry) is not None


def test_nothing_that_listens_is_no_identity_in_time(above: Sky) -> None:
    with FaultServer(above.clouds) as gone:
        host = gone.host
    started = time.monotonic()
    assert find(above, GOOGLE, {"GCE_METADATA_HOST": host}) is None
    assert find(above, AZURE, {"AZURE_POD_IDENTITY_AUTHORITY_HOST": f"http://{host}"}) is None
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "answer",
    [Answer(404, {"Metadata-Flavor": "Google"}), json_answer({"access_token": "google-token-canary", "expires_in": 9})],
    ids=["no account", "another cloud's metadata"],
)
def test_metadata_without_an_account_of_google_is_no_identity(above: Sky, answer: Answer) -> None:
    above.clouds.hosts[METADATA] = lambda _request: answer
    assert find(above, GOOGLE, {}) is None
    assert len(above.asked(METADATA)) == 1


def test_the_registry_of_azure_is_told_the_tenant_where_it_is_known(above: Sky, identity: Identity) -> None:
    for name, told in (("workload identity", True), ("managed identity", False)):
        registry, environ = identity(name)
        assert find(above, registry, environ)
        assert (b"&tenant=tenant-1" in above.asked(AZURE)[-1].body) == told


def test_a_machine_without_managed_identity_reads_what_is_public(above: Sky) -> None:
    def refuse(_request: Request) -> Answer:
        return json_answer({"error": "invalid_request", "error_description": "Identity not found"}, 400)

    above.clouds.hosts[METADATA] = refuse
    assert find(above, AZURE, {}) is None
    assert above.asked(AZURE) == []
