"""Clients of object stores: where they go, what they trust, what they say. Bars: F6, F11, F12, G11.

The stores here are canned answers on loopback; `tests/integration/test_stores.py` has real ones.
"""

import logging
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from threading import Event
from urllib.parse import unquote

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    CredentialsError,
    LocalIOError,
    MlimgError,
    RemoteError,
    RemoteTemporaryError,
    SpecError,
    Stopped,
)
from mlimg.runtime.oci import Access
from mlimg.runtime.origin import RangesIgnoredError
from mlimg.runtime.reference import ModelUri, ObjectPlace
from mlimg.runtime.stores import open_store
from mlimg.runtime.stores.objects import Bucket, ObjectOrigin
from mlimg.runtime.stores.objects import settings as module
from tests.support.faults import Answer, Backend, Fault, FaultServer, Request
from tests.support.payloads import FILES, payload

STATE = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
FILE = PurePosixPath("model.bin")
SAS = "sv=2021-12-02&sr=c&sig=CANARY%2Bsignature%3D"
SECRETS = ("CANARY", "X-Amz-Signature=", "sig=")


def answering(data: bytes = b"weights") -> Backend:
    """A store in which every object has the same content."""

    def answer(request: Request) -> Answer:
        range_ = request.headers.get("Range") or request.headers.get("range")
        if range_:
            first, last = (int(text) for text in range_.removeprefix("bytes=").split("-"))
            part = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            return Answer(206, {**STATE, **part}, data[first : last + 1])
        return Answer(200, STATE, data)

    return answer


def s3(host: str, **more: str) -> Access:
    """With the credentials that a container of AWS has, the session's token among them."""
    environ = {
        "AWS_ENDPOINT_URL": f"http://{host}",
        "AWS_ACCESS_KEY_ID": "CANARYkey",
        "AWS_SECRET_ACCESS_KEY": "CANARYsecret",
        "AWS_SESSION_TOKEN": "CANARYtoken",
        **more,
    }
    return Access(environ=environ, attempts=1, stall_seconds=2)


def azure(host: str, **more: str) -> Access:
    environ = {
        "AZURE_STORAGE_ENDPOINT": f"http://{host}/account",
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_SAS_TOKEN": SAS,
        **more,
    }
    return Access(environ=environ, attempts=1, stall_seconds=2)


def google(host: str) -> Access:
    environ = {"GOOGLE_BASE_URL": f"http://{host}", "GOOGLE_SKIP_SIGNATURE": "true"}
    return Access(environ=environ, attempts=1, stall_seconds=2)


KINDS: dict[str, Callable[[str], Access]] = {"s3": s3, "az": azure, "gs": google}


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore looks at the process's own environment, too."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_read_whole_and_in_parts(kind: str) -> None:
    with FaultServer(answering()) as server:
        bucket = Bucket.open(f"{kind}://bucket/models", KINDS[kind](server.host))
        assert b"".join(bucket.read(FILE, 0, 7)) == b"weights"
        assert b"".join(bucket.read(FILE, 2, 3)) == b"igh"
        assert list(bucket.read(FILE, 0, 0)) == []
        assert bucket.get_small(FILE, 7) == b"weights"
        found = bucket.head(FILE)
        assert found is not None
        assert (found.path, found.size_bytes) == (FILE, 7)
        asked = {unquote(request.path.partition("?")[0]) for request in server.requests}
    assert len(asked) == 1
    assert asked.pop().endswith("bucket/models/model.bin")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_store_sends_too_little_or_too_much_is_noticed(kind: str) -> None:
    with FaultServer(answering()) as server:
        bucket = Bucket.open(f"{kind}://bucket/models", KINDS[kind](server.host))
        server.faults = [fault := Fault(cut_at=3)]
        with pytest.raises(RemoteTemporaryError):
            list(bucket.read(FILE, 0, 7))
        server.faults = [ignored := Fault(answer=Answer(200, STATE, b"weights"))]
        with pytest.raises(RangesIgnoredError):
            list(bucket.read(FILE, 2, 3))
        assert fault.fired == ignored.fired == 1
        assert b"".join(bucket.read(FILE, 2, 3)) == b"igh"  # the twin


def test_a_store_that_stalls_is_given_up() -> None:
    with FaultServer(answering(bytes(100_000)), Fault(stall_at=1000)) as server:
        access = Access(environ=s3(server.host).environ, attempts=1, stall_seconds=0.3)
        with pytest.raises(RemoteTemporaryError):
            list(Bucket.open("s3://bucket", access).read(FILE, 0, 100_000))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_f11_no_credentials_follow_a_redirect(kind: str, status: int) -> None:
    with FaultServer(answering(b"elsewhere")) as elsewhere, FaultServer(answering()) as server:
        bucket = Bucket.open(f"{kind}://bucket/models", KINDS[kind](server.host))
        for read in (lambda: bucket.get_small(FILE, 100), lambda: list(bucket.read(FILE, 1, 2))):
            server.faults = [fault := Fault(answer=Answer(status, {"Location": f"http://{elsewhere.host}/x"}))]
            with nullcontext() if kind == "gs" else pytest.raises(RemoteError, match=elsewhere.host):
                read()
            assert fault.fired == 1
        sent = [text for request in elsewhere.requests for text in (request.path, *request.headers.values())]
        names = {name.lower() for request in elsewhere.requests for name in request.headers}
    assert not [text for text in sent if "CANARY" in text]
    assert not {name for name in names if name.startswith("x-amz") or name == "authorization"}
    if kind != "gs":  # which has nothing to carry off, and is left to obstore
        assert not sent


def azure_key(host: str) -> Access:
    return azure(host, AZURE_STORAGE_SAS_TOKEN="", AZURE_STORAGE_ACCOUNT_KEY="Q0FOQVJZ")


@pytest.mark.parametrize("kind", ["s3", "az", "az with a key"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_f11_a_listing_takes_no_credentials_along_when_it_is_redirected(kind: str, status: int) -> None:
    with FaultServer(answering(b"<a/>")) as elsewhere:
        moved = Answer(status, {"Location": f"http://{elsewhere.host}/x", "Set-Cookie": "CANARY=1"})
        with FaultServer(lambda _: moved) as server:
            access = azure_key(server.host) if kind == "az with a key" else KINDS[kind](server.host)
            with pytest.raises(RemoteError):
                list(Bucket.open(f"{kind[:2]}://bucket/models", access).list())
            assert server.requests
        texts = [text for request in elsewhere.requests for text in (request.path, *request.headers.values())]
        names = {name.lower() for request in elsewhere.requests for name in request.headers}
    assert not [text for text in texts if "CANARY" in text or "sig=" in text]
    assert not names & {"authorization", "x-amz-security-token", "cookie"}
    if kind in {"s3", "az"}:
        assert not elsewhere.requests


@pytest.mark.parametrize("action", ["publish", "take over"])
def test_f11_a_store_that_redirects_is_found_out_before_anything_is_written(action: str) -> None:
    with FaultServer(answering()) as elsewhere:
        moved = Answer(307, {"Location": f"http://{elsewhere.host}/x"})
        with FaultServer(lambda _: moved) as server:
            store = open_store("s3://bucket/models", s3(server.host), force=action == "take over")
            with pytest.raises(RemoteError, match="not followed"):
                store.publish(payload(FILES))
            assert {request.method for request in server.requests} == {"GET"}
        assert not elsewhere.requests


BROKEN = {
    "refused": Fault(answer=Answer(403, {}, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")),
    "quoted": Fault(answer=Answer(403, {}, f"<Error><Code>X</Code><Message>bad ?{SAS}</Message></Error>".encode())),
    "broken": Fault(answer=Answer(500, {}, b"<Error><Code>InternalError</Code></Error>")),
    "odd": Fault(answer=Answer(418)),
    "cut": Fault(cut_at=1),
    "hung up": Fault(lose_answer=True),
    "gone": Fault(answer=Answer(404, {}, b"<Error><Code>NoSuchBucket</Code></Error>")),
}


@pytest.mark.parametrize("kind", ["s3", "az"])
@pytest.mark.parametrize("broken", BROKEN)
def test_f12_nothing_that_is_raised_or_logged_holds_a_secret(
    kind: str, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FaultServer(answering()) as server:
        bucket = Bucket.open(f"{kind}://bucket/models", KINDS[kind](server.host))
        tries: list[Callable[[], object]] = [
            lambda: bucket.get_small(FILE, 100),
            lambda: list(bucket.read(FILE, 0, 7)),
            lambda: list(bucket.list()),
            lambda: bucket.put_small_new(FILE, b"x"),
            lambda: bucket.put_file(FILE, [b"x"], 1),
            lambda: bucket.put_file(FILE, [bytes(2**20)] * 9, 9 * 2**20),
        ]
        said = [repr(bucket), str(bucket), repr(bucket.place), caplog.text]
        raised = 0
        for attempt in tries:
            fault = BROKEN[broken]
            fault.times, fault.fired = 10**6, 0
            server.faults = [fault]
            try:
                attempt()
            except MlimgError as error:
                raised += 1
                said += [error.message, error.hint, repr(error), *traceback.format_exception(error)]
        said.append(caplog.text)
    assert raised >= 3
    assert not [text for text in said for secret in SECRETS if secret in text.replace("sig=…", "")]


def test_f12_a_store_that_cannot_be_reached_is_told_without_its_signature() -> None:
    for kind in ("s3", "az"):
        bucket = Bucket.open(f"{kind}://bucket/models", KINDS[kind]("127.0.0.1:1"))
        for attempt in (lambda b=bucket: b.get_small(FILE, 10), lambda b=bucket: b.put_small_new(FILE, b"x")):  # type: ignore[misc]
            with pytest.raises(RemoteTemporaryError) as caught:
                attempt()
            text = "".join(traceback.format_exception(caught.value))
            assert not [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("host", ["169.254.169.254", "metadata.google.internal", "[fd00:ec2::254]"])
def test_g11_a_metadata_service_is_no_store(host: str) -> None:
    with pytest.raises(RemoteError, match="metadata service"):
        Bucket.open("s3://bucket", Access(environ={"AWS_ENDPOINT_URL": f"http://{host}"}))


def test_plain_http_is_for_loopback_and_hosts_that_are_named() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://s3.lab:9000", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    with pytest.raises(RemoteError, match="plain HTTP"):
        Bucket.open("s3://bucket", Access(environ=environ))
    Bucket.open("s3://bucket", Access(environ=environ, insecure=frozenset({"s3.lab:9000"})))
    Bucket.open("s3://bucket", Access(environ={**environ, "AWS_ENDPOINT_URL": "https://s3.lab:9000"}))


def test_the_endpoint_of_s3_alone_comes_before_that_of_all_services() -> None:
    with FaultServer(answering()) as server:
        access = s3("192.0.2.1", AWS_ENDPOINT_URL_S3=f"http://{server.host}")
        assert Bucket.open("s3://bucket", access).get_small(FILE, 10) == b"weights"


def test_a_bucket_can_be_part_of_the_host() -> None:
    with FaultServer(answering()) as server:
        port = server.host.rpartition(":")[2]
        access = s3(f"localhost:{port}", AWS_VIRTUAL_HOSTED_STYLE_REQUEST="true")
        clients = module.connect(ObjectPlace.parse("s3://bucket/a"), access)
        assert clients.reading.config["endpoint"] == f"http://bucket.localhost:{port}"  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "endpoint", ["s3.lab", "ftp://s3.lab", "https://user:CANARY@s3.lab", "https://s3.lab?x=CANARY"]
)
def test_an_endpoint_that_is_none_is_refused_unseen(endpoint: str) -> None:
    with pytest.raises(SpecError) as caught:
        Bucket.open("s3://bucket", Access(environ={"AWS_ENDPOINT_URL": endpoint}))
    assert "CANARY" not in caught.value.message


def test_a_ca_bundle_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalIOError, match="CA bundle"):
        Bucket.open("s3://bucket", s3("127.0.0.1:1", AWS_CA_BUNDLE=str(tmp_path / "none.pem")))


def test_a_profile_needs_boto3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = module.importlib.import_module

    def without_boto3(name: str) -> object:
        if "boto3" in name:
            raise ModuleNotFoundError(name=name)
        return real(name)

    monkeypatch.setattr(module.importlib, "import_module", without_boto3)
    with pytest.raises(CredentialsError, match="boto3") as caught:
        Bucket.open("s3://bucket", Access(environ={"AWS_PROFILE": "lab"}))
    assert "mlimg[aws]" in caught.value.hint
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\n")
    Bucket.open("s3://bucket", Access(environ={"HOME": str(tmp_path)}))  # nobody asked for a profile


def test_a_server_without_obstore_says_how_it_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(module.importlib, "import_module", absent)
    with pytest.raises(SpecError, match="obstore is not installed") as caught:
        ObjectOrigin(Access()).resolve(ModelUri.parse("s3://bucket/digits/3"))
    assert "model.store" in caught.value.hint


def test_reading_ends_when_it_is_told_to() -> None:
    with FaultServer(answering(bytes(4 * 2**20))) as server:
        stop = Event()
        bucket = Bucket.open("s3://bucket", s3(server.host), stop)
        pieces = bucket.read(FILE, 0, 4 * 2**20)
        next(pieces)
        stop.set()
        with pytest.raises(Stopped):
            list(pieces)
        with pytest.raises(Stopped):
            bucket.get_small(FILE, 10)


def test_a_file_of_another_size_than_the_manifest_says_is_not_read() -> None:
    manifest = payload(FILES).manifest.to_bytes()

    def store(request: Request) -> Answer:
        return answering(manifest if "mlimg.manifest" in request.path else b"short")(request)

    with FaultServer(store) as server:
        origin = ObjectOrigin(s3(server.host))
        uri = origin.resolve(ModelUri.parse("s3://bucket/models/digits/3"))
        assert uri.digest == Digest.of(manifest)
        model = origin.open(uri)
        with pytest.raises(MlimgError, match="its manifest says"):
            list(model.files[0].read(0, model.files[0].file.size_bytes))
        with pytest.raises(MlimgError, match="is not the one"):
            origin.open(uri.pinned(Digest.of(b"")))
        origin.close()
