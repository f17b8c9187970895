"""Listings that our own HTTP asks for, by signed addresses: objects, and uploads in parts that nobody completed.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html
https://learn.microsoft.com/rest/api/storageservices/list-blobs
"""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event
from typing import Final
from urllib.parse import unquote, unquote_plus
from xml.parsers import expat

from urllib3.response import BaseHTTPResponse

from mlimg.runtime.errors import RemoteError, RemoteTemporaryError
from mlimg.runtime.oci.transport import Transport, Unavailable, discard, read_capped
from mlimg.runtime.reference import ObjectPlace
from mlimg.runtime.stores.objects.addresses import Addresses, refused
from mlimg.runtime.stores.objects.settings import Clients

# 5,000 blobs of Azure whose names are as long as they can be, each letter encoded.
_PAGE_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Listed:
    """An object of a listing."""

    key: str  # below the prefix
    size_bytes: int
    etag: str | None


class Lister:
    """Lists what is below a prefix. Each call is one attempt, and raises RemoteTemporaryError where another may do."""

    def __init__(self, place: ObjectPlace, clients: Clients, stop: Event) -> None:
        self._place = place
        self._addresses = Addresses(place, clients)
        self._transport = Transport(clients.access, stop)
        self._below = "".join(f"{part}/" for part in place.prefix.parts)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def page(self, marker: str) -> tuple[list[Listed], str]:
        """The objects after `marker`, "" at the beginning, and the next page's marker, "" at the end.

        Raises RemoteError for an answer that is no listing, and as `Bucket`.
        """
        if self._place.scheme == "az":
            query = {"restype": "container", "comp": "list", "prefix": self._below, "marker": marker}
            names = ("Blob", "Name", "Content-Length", "Etag", "NextMarker")
        else:
            query = {"list-type": "2", "encoding-type": "url", "prefix": self._below, "continuation-token": marker}
            names = ("Contents", "Key", "Size", "ETag", "NextContinuationToken")
        data = self._ask({name: text for name, text in query.items() if text})
        record, key, size, etag, following = names
        answer = _Answer(data, record, self._what)
        found = []
        for values in answer.records:
            length = values.get(size, "")
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise RemoteError(f"{self._what}: an object has no size")
            found.append(Listed(self._relative(answer, values.get(key, "")), int(length), values.get(etag)))
        after = answer.values.get(following, "")
        if after and after == marker:
            raise RemoteError(f"{self._what} comes to no end: a page says to be followed by itself")
        return found, after

    def abort_uploads(self) -> int:
        """Abort the uploads of S3 below the prefix that are not completed, a page of 1,000 at most; how many."""
        answer = _Answer(
            self._ask({"uploads": "", "encoding-type": "url", "prefix": self._below}), "Upload", self._what
        )
        for values in answer.records:
            key, upload = self._relative(answer, values.get("Key", "")), values.get("UploadId", "")
            if not key or not upload:  # without the one the address is the bucket's, without the other the object's
                raise RemoteError(f"{self._what}: an upload has no name")
            query = {"uploadId": upload}
            address = self._addresses.with_query(query, method="DELETE", key=f"{self._below}{key}")
            response = self._once("DELETE", address)
            if response.status not in {204, 404}:  # somebody else may have been first
                raise refused(response, f"{self._place}/{key}")[1]
            discard(response)
        return len(answer.records)

    @property
    def _what(self) -> str:
        return f"{self._place}: listing"

    def _relative(self, answer: "_Answer", key: str) -> str:
        if answer.values.get("EncodingType") == "url":
            key = unquote_plus(key)
        if not key.startswith(self._below):
            raise RemoteError(f"{self._what}: the store tells of what it was not asked for")
        return key.removeprefix(self._below)

    def _ask(self, query: Mapping[str, str]) -> bytes:
        response = self._once("GET", self._addresses.with_query(query))
        if response.status != 200:
            raise refused(response, self._what)[1]
        try:
            return read_capped(response, _PAGE_BYTES, self._what)
        except Unavailable as failure:
            raise RemoteTemporaryError(str(failure)) from None

    def _once(self, method: str, address: str) -> BaseHTTPResponse:
        try:
            return self._transport.once(method, address, {})
        except Unavailable as failure:
            raise RemoteTemporaryError(f"{self._what}: {failure}") from None


class _Answer:
    """The XML of a listing, flat: the texts in each `record`, and those beside them, by their elements' names.

    Raises RemoteError for other text; a document type, in which entities could grow without bound, among it.
    """

    def __init__(self, data: bytes, record: str, what: str) -> None:
        self.records: list[dict[str, str]] = []
        self.values: dict[str, str] = {}
        self._record = record
        self._inside: dict[str, str] | None = None
        self._text: list[str] = []
        self._encoded = False
        parser = expat.ParserCreate("utf-8")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        parser.StartDoctypeDeclHandler = self._refuse
        try:
            parser.Parse(data, True)  # it is all there is
        except (expat.ExpatError, ValueError):
            raise RemoteError(f"{what}: the store's answer is no listing") from None

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._text.clear()
        self._encoded = attributes.get("Encoded") == "true"  # of Azure, for what XML cannot say
        if name == self._record:
            self._inside = {}

    def _end(self, name: str) -> None:
        if name == self._record and self._inside is not None:
            self.records.append(self._inside)
            self._inside = None
            return
        text = "".join(self._text)
        into = self.values if self._inside is None else self._inside
        into.setdefault(name, unquote(text) if self._encoded else text)
        self._text.clear()
        self._encoded = False

    def _refuse(self, *_: object) -> None:
        raise ValueError("a document type")
