"""Files behind web addresses, from a server that fails on purpose."""

import random
from pathlib import PurePosixPath

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import CredentialsError, IntegrityError, RemoteError, RemoteTemporaryError
from mlimg.runtime.oci import Access
from mlimg.sources import ModelSource
from mlimg.sources.remote import Wanted, open_remote
from mlimg.sources.selection import EVERYTHING
from mlimg.sources.web import Web, check_origin
from tests.support.faults import Answer, Fault, FaultServer, flip
from tests.support.webfiles import WebFiles

DATA = random.Random(5).randbytes(3_000_000)
QUICK = Access(backoff_seconds=0.01, stall_seconds=0.5)
PATH = PurePosixPath("model.onnx")


def opened(server: FaultServer, data: bytes = DATA, path: str = "folder/model.onnx") -> ModelSource:
    wanted = Wanted(f"http://{server.host}/{path}", EVERYTHING, sha256=Digest.of(data))
    return open_remote(wanted, QUICK)


def read(source: ModelSource) -> bytes:
    with source.open(PATH) as file:
        return file.read()


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_a_file_is_listed_and_read(ranges: bool) -> None:
    with FaultServer(WebFiles({"folder/model.onnx": DATA}, ranges)) as server:
        source = opened(server)
        (file,) = source.inventory()
        assert (file.path, file.size_bytes, file.sha256) == (PATH, len(DATA), Digest.of(DATA))
        assert file.fingerprint == Digest.of(DATA).text
        assert source.inventory().origin == {"uri": f"http://{server.host}/folder/model.onnx"}
        assert read(source) == DATA
        with source.open(PATH) as reopened:
            reopened.seek(len(DATA) - 100)
            assert reopened.read(100) == DATA[-100:]


def test_an_empty_file_is_listed_and_another_sha256_is_refused() -> None:
    with FaultServer(WebFiles({"folder/model.onnx": b""})) as server:
        assert read(opened(server, b"")) == b""
        with pytest.raises(IntegrityError, match="is empty"):
            opened(server, b"x")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", times=3, skip=1, cut_at=100_000),
        Fault("GET", times=3, skip=1, reset_at=1),
        Fault("GET", times=3, skip=1, answer=Answer(503, {"Retry-After": "0"})),
        Fault("GET", times=1, skip=1, stall_at=500_000),
        Fault("GET", times=3, answer=Answer(500)),
    ],
    ids=["cut", "reset", "503", "stall", "500 while listing"],
)
def test_what_passes_is_asked_for_again(fault: Fault) -> None:
    with FaultServer(WebFiles({"folder/model.onnx": DATA}), fault) as server:
        assert read(opened(server)) == DATA
        assert fault.fired == fault.times


def test_a_flipped_bit_is_found() -> None:
    fault = Fault("GET", skip=1, change=lambda answer: flip(answer, 2_999_999))
    with FaultServer(WebFiles({"folder/model.onnx": DATA}), fault) as server:
        source = opened(server)
        with pytest.raises(IntegrityError, match="other content"):
            read(source)
        assert fault.fired == 1
        assert read(source) == DATA


def test_a_file_that_has_another_length_meanwhile_is_found() -> None:
    files = WebFiles({"folder/model.onnx": DATA})
    with FaultServer(files) as server:
        source = opened(server)
        files.files = {"folder/model.onnx": DATA + b"x"}
        with pytest.raises(IntegrityError, match="3000001 bytes now"):
            read(source)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(404), RemoteError),
        (Answer(401), CredentialsError),
        (Answer(403), CredentialsError),
        (Answer(204), RemoteError),
        (Answer(200, {"Content-Length": "x"}), RemoteError),
        (Answer(206, {"Content-Range": "bytes 0-0/*"}, b"x"), RemoteError),
        (Answer(200, {"Content-Encoding": "gzip"}, b"x"), RemoteError),
    ],
)
def test_an_answer_that_is_no_file_is_told(answer: Answer, error: type[Exception]) -> None:
    with FaultServer(lambda _: answer) as server, pytest.raises(error):
        opened(server)


def test_another_part_than_asked_for_is_refused() -> None:
    other = Answer(206, {"Content-Range": f"bytes 7-9/{len(DATA)}"}, b"abc")
    fault = Fault("GET", skip=1, answer=other)
    with FaultServer(WebFiles({"folder/model.onnx": DATA}), fault) as server:
        source = opened(server)
        with source.open(PATH) as file:
            file.seek(1_000_000)
            with pytest.raises(RemoteError, match="another part"):
                file.read(10)


def redirect(to: str) -> Answer:
    return Answer(302, {"Location": to})


def test_credentials_stay_with_their_origin() -> None:
    """E15: a redirect to another origin is followed without the header, one to the same origin with it."""
    with FaultServer(WebFiles({"far.bin": DATA})) as far, FaultServer(WebFiles({"near.bin": DATA})) as near:
        near.faults += [
            Fault("GET", "/a.bin", times=9, answer=redirect("/near.bin")),
            Fault("GET", "/b.bin", times=9, answer=redirect(f"http://{far.host}/far.bin")),
            # Over another origin and back: what comes back is asked with the header, as its origin may have it.
        ]
        web = Web(QUICK, f"http://{near.host}", {"Authorization": "Bearer canary"})
        for path in ("a.bin", "b.bin"):
            assert web.size(f"http://{near.host}/{path}") == len(DATA)
        assert all(request.headers.get("Authorization") == "Bearer canary" for request in near.requests)
        assert [request.headers.get("Authorization") for request in far.requests] == [None]
        assert far.count() == 1


@pytest.mark.parametrize(
    "to",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://metadata.google.internal/x",
        "file:///etc/passwd",
        "http://user:pw@127.0.0.1/x",
        "http://[::1",
    ],
)
def test_a_redirect_to_nowhere_good_is_not_followed(to: str) -> None:
    fault = Fault("GET", times=9, answer=redirect(to))
    with FaultServer(WebFiles({}), fault) as server, pytest.raises(RemoteError):
        opened(server)
    assert fault.fired == 1


def test_redirects_end() -> None:
    with FaultServer(lambda _: redirect("/again")) as server, pytest.raises(RemoteError, match="more than 5 times"):
        opened(server)
    assert server.count() == 6


def test_patience_ends() -> None:
    with FaultServer(lambda _: Answer(503)) as server, pytest.raises(RemoteTemporaryError):
        opened(server)
    assert server.count() == QUICK.attempts


@pytest.mark.parametrize(
    ("address", "sound"),
    [
        ("https://hub.example.com/x", True),
        ("http://127.0.0.1:8080", True),
        ("http://hub.example.com", False),
        ("https://user:pw@hub.example.com", False),
        ("https://169.254.169.254", False),
        ("ftp://hub.example.com", False),
        ("hub.example.com", False),
    ],
)
def test_a_server_that_the_environment_names_is_reached_by_tls(address: str, sound: bool) -> None:
    if sound:
        assert address.startswith(check_origin("HF_ENDPOINT", address))
        return
    with pytest.raises(RemoteError, match="HF_ENDPOINT") as caught:
        check_origin("HF_ENDPOINT", address)
    assert "pw" not in str(caught.value)
