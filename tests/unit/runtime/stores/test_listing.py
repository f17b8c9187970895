"""Listings of object stores as they are read here: what is no listing, and what comes to no end, is refused.

`tests/integration/test_sources.py` and `test_stores.py` list real stores.
"""

from pathlib import PurePosixPath
from urllib.parse import parse_qs, urlsplit

import pytest

from mlimg.runtime.errors import LimitError, RemoteError, RemoteTemporaryError
from mlimg.runtime.oci import Access
from mlimg.runtime.stores.objects import Bucket, listing
from tests.support.faults import Answer, Backend, Fault, FaultServer, Request

HEAD = '<?xml version="1.0" encoding="UTF-8"?>'


def bucket(host: str, kind: str = "s3", attempts: int = 1) -> Bucket:
    environ = {
        "AWS_ENDPOINT_URL": f"http://{host}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AZURE_STORAGE_ENDPOINT": f"http://{host}/account",
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_SAS_TOKEN": "sv=2021-12-02&sig=x",
    }
    return Bucket.open(f"{kind}://bucket/a b", Access(environ=environ, attempts=attempts, backoff_seconds=0.01))


def of_s3(*keys: str, more: str = "", size: str = "7") -> bytes:
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>&quot;1&quot;</ETag><Owner><ID>o</ID></Owner></Contents>"
        for key in keys
    )
    token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    return f"{HEAD}<ListBucketResult>{token}<EncodingType>url</EncodingType>{contents}</ListBucketResult>".encode()


def of_azure(*names: str, more: str = "") -> bytes:
    blobs = "".join(
        f"<Blob>{name}<Properties><Content-Length>7</Content-Length><Etag>0x1</Etag></Properties></Blob>"
        for name in names
    )
    marker = f"<NextMarker>{more}</NextMarker>"
    return f"\ufeff{HEAD}<EnumerationResults><Blobs>{blobs}</Blobs>{marker}</EnumerationResults>".encode()


def pages(marker: str, *answers: bytes) -> Backend:
    """A store that gives the first page to whoever names none, and page `n` to whoever names ``n``."""

    def answer(request: Request) -> Answer:
        asked = parse_qs(urlsplit(request.path).query)
        assert asked["prefix"] == ["a b/"]
        return Answer(200, {}, answers[int(asked.get(marker, ["0"])[0])])

    return answer


def answering(data: bytes) -> Backend:
    return lambda _: Answer(200, {}, data)


def test_all_pages_of_s3_are_read_and_names_are_what_they_were() -> None:
    first, second = of_s3("a+b/c%2Bd", "a+b/%C3%BC%26", more="1"), of_s3("a%20b/z/")
    with FaultServer(pages("continuation-token", first, second)) as server:
        found = list(bucket(server.host).list())
    assert [(str(info.path), info.size_bytes, info.etag) for info in found] == [
        ("c+d", 7, '"1"'),
        ("ü&", 7, '"1"'),
        ("z", 7, '"1"'),
    ]


def test_all_pages_of_azure_are_read_and_names_are_what_they_were() -> None:
    first = of_azure("<Name>a b/c+%41</Name>", '<Name Encoded="true">a%20b%2Fd%EF%BF%BE</Name>', more="1")
    with FaultServer(pages("marker", first, of_azure("<Name>a b/e</Name>"))) as server:
        found = list(bucket(server.host, "az").list())
    assert [(str(info.path), info.size_bytes, info.etag) for info in found] == [
        ("c+%41", 7, "0x1"),
        ("d\ufffe", 7, "0x1"),
        ("e", 7, "0x1"),
    ]


def test_the_object_of_the_prefix_itself_is_a_folder_and_no_file() -> None:
    with FaultServer(answering(of_s3("a+b/", size="0"))) as server:
        assert not list(bucket(server.host).list())
    with FaultServer(answering(of_s3("a+b/", size="1"))) as server, pytest.raises(RemoteError, match="a key below"):
        list(bucket(server.host).list())


@pytest.mark.parametrize("key", ["a+b/..", "a+b/c//d", "a+b/./d", "a+b/c%0Ad", "a+b//", "a+b/%7F"])
def test_a_key_that_no_file_can_have_is_refused(key: str) -> None:
    with FaultServer(answering(of_s3(key))) as server, pytest.raises(RemoteError, match="a key below"):
        list(bucket(server.host).list())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html><body>Welcome<br></body></html>",
        b"weights",
        of_s3("a+b/c")[:-30],
        of_s3("a+b/c", size="many"),
        of_s3("a+b/c", size="-1"),
        of_s3("elsewhere/c"),
        of_s3("a+b/c").replace(b"<ListBucketResult>", b'<!DOCTYPE l [<!ENTITY e "x">]><ListBucketResult>'),
        HEAD.replace("UTF-8", "UTF-16").encode("utf-16"),
    ],
)
def test_what_is_no_listing_is_refused(data: bytes) -> None:
    with FaultServer(answering(data)) as server, pytest.raises(RemoteError, match="listing"):
        list(bucket(server.host).list())


def test_a_listing_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    again = of_s3(more="1")
    with FaultServer(pages("continuation-token", again, again)) as server:
        with pytest.raises(RemoteError, match="comes to no end"):
            list(bucket(server.host).list())
        assert server.count() == 2
        monkeypatch.setattr(listing, "_PAGE_BYTES", 100)
        with pytest.raises(LimitError):
            list(bucket(server.host).list())


def test_a_page_that_breaks_off_is_asked_for_again() -> None:
    with FaultServer(answering(of_s3("a+b/c")), Fault(cut_at=40), Fault(answer=Answer(503))) as server:
        assert [info.path for info in bucket(server.host, attempts=3).list()] == [PurePosixPath("c")]
        assert server.count() == 3
        server.faults = [Fault(answer=Answer(503))]
        with pytest.raises(RemoteTemporaryError):
            list(bucket(server.host).list())


def test_an_upload_without_a_name_aborts_nothing() -> None:
    """An address without it would be that of the object, or of the bucket."""
    for upload in (
        "<Key>a%20b/c</Key>",
        "<Key>a%20b/</Key><UploadId>1</UploadId>",
        "<Key>b/c</Key><UploadId>1</UploadId>",
    ):
        data = f"<L><EncodingType>url</EncodingType><Upload>{upload}</Upload></L>".encode()
        with FaultServer(answering(data)) as server:
            with pytest.raises(RemoteError):
                bucket(server.host).abort_uploads()
            assert server.count("DELETE") == 0
