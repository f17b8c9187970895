"""Two ways to read an object: a signed address asked for by our own HTTP, and obstore's own reading.

Each call is one attempt. What of a store is asked which way, and why, is in `settings.Clients`.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final, Protocol

from urllib3 import exceptions
from urllib3.response import BaseHTTPResponse

from mlimg.runtime.digest import READ_SIZE_BYTES
from mlimg.runtime.errors import RemoteError, RemoteTemporaryError, Stopped
from mlimg.runtime.oci.transport import Transport, Unavailable, bytes_before, read_pieces
from mlimg.runtime.origin import RangesIgnoredError
from mlimg.runtime.reference import ObjectPlace
from mlimg.runtime.stores.objects.addresses import Addresses, refused
from mlimg.runtime.stores.objects.refusals import code_of, translated
from mlimg.runtime.stores.objects.settings import Clients

_NOTHING: Final = frozenset({"NoSuchKey", "BlobNotFound", ""})  # codes of 404 that speak of the object
_METADATA: Final = ("x-amz-meta-", "x-ms-meta-", "x-goog-meta-")


@dataclass(frozen=True, slots=True)
class Opened:
    """An object that answers: what is known of it, and its bytes, or the part that was asked for."""

    size_bytes: int  # of the whole object
    etag: str | None
    version: str | None
    metadata: Mapping[str, str] = field(repr=False)
    pieces: Generator[bytes, None, None] = field(repr=False)


class Reader(Protocol):
    """Reads objects by their keys below a prefix."""

    def open(
        self, key: str, *, offset: int = 0, size_bytes: int | None = None, etag: str | None = None, body: bool = True
    ) -> Opened | None:
        """Open an object, or `size_bytes` from `offset` on; None where there is none.

        `etag`: only this state of it. Raises RangesIgnoredError, RemoteTemporaryError, RemoteError, CredentialsError.
        """

    def close(self) -> None:
        """Close idle connections."""


class AddressReader:
    """Signs addresses and asks for them itself."""

    def __init__(self, place: ObjectPlace, clients: Clients, stop: Event) -> None:
        self._place = place
        self._addresses = Addresses(place, clients)
        self._transport = Transport(clients.access, stop)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def open(
        self, key: str, *, offset: int = 0, size_bytes: int | None = None, etag: str | None = None, body: bool = True
    ) -> Opened | None:
        """Open an object or a part of it; None where there is none."""
        method, what = "GET" if body else "HEAD", f"{self._place}/{key}"
        headers = {} if size_bytes is None else {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
        if etag is not None:
            headers["If-Match"] = etag
        try:
            response = self._transport.once(method, self._addresses.of_object(key, method), headers)
        except Unavailable as failure:
            raise RemoteTemporaryError(f"{what}: {failure}") from None
        if response.status not in {200, 206}:
            code, error = refused(response, what)
            if response.status == 404 and code in _NOTHING:
                return None
            raise error
        if size_bytes is not None and response.status == 200:
            response.close()
            raise RangesIgnoredError(f"{what}: the store answers with all of an object when asked for a part")
        if size_bytes is not None and bytes_before(response, offset) is None:
            response.close()
            raise RemoteError(f"{what}: the store sends another part than it was asked for")
        return Opened(
            _size(response),
            response.headers.get("ETag"),
            response.headers.get("x-amz-version-id") or response.headers.get("x-ms-version-id"),
            _metadata(response.headers),
            _pieces(response, what, self._transport.stop),
        )


class NativeReader:
    """Leaves it to obstore, whose requests hold nothing that a redirect could carry off."""

    def __init__(self, place: ObjectPlace, clients: Clients, stop: Event) -> None:
        self._place = place
        self._clients = clients
        self._stop = stop

    def close(self) -> None:
        """Nothing to do: obstore closes what is idle."""

    def open(
        self, key: str, *, offset: int = 0, size_bytes: int | None = None, etag: str | None = None, body: bool = True
    ) -> Opened | None:
        """Open an object or a part of it; None where there is none."""
        import obstore  # noqa: PLC0415 (absent from servers that need none)

        what = f"{self._place}/{key}"
        options: dict[str, Any] = {} if body else {"head": True}
        if size_bytes is not None:
            options["range"] = (offset, offset + size_bytes)
        if etag is not None:
            options["if_match"] = etag
        try:
            found = obstore.get(self._clients.reading, key, options=options)  # type: ignore[arg-type,unused-ignore]
        except FileNotFoundError as error:
            if code_of(str(error)) in _NOTHING:
                return None
            raise translated(what, error) from None
        except Exception as error:  # obstore's base class, and ValueError
            if "non-partial response" in str(error):
                raise RangesIgnoredError(f"{what}: the store answers with all of an object, not a part") from None
            raise translated(what, error) from None
        meta = found.meta
        attributes = {str(name): str(value) for name, value in found.attributes.items()}
        return Opened(meta["size"], meta["e_tag"], meta["version"], attributes, self._pieces(found, what))

    def _pieces(self, found: Any, what: str) -> Generator[bytes, None, None]:
        try:
            for piece in found.stream(READ_SIZE_BYTES):
                if self._stop.is_set():
                    raise Stopped
                yield bytes(piece)
        except (Stopped, GeneratorExit):
            raise
        except Exception as error:  # obstore's base class, and ValueError
            raise translated(what, error) from None


def _pieces(response: BaseHTTPResponse, what: str, stop: Event) -> Generator[bytes, None, None]:
    try:
        yield from read_pieces(response, stop)
        response.release_conn()
    except exceptions.HTTPError as error:
        raise RemoteTemporaryError(f"{what}: the connection broke ({type(error).__name__})") from None
    finally:
        if not response.closed:
            response.close()


def _size(response: BaseHTTPResponse) -> int:
    whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    return int(whole) if whole.isascii() and whole.isdigit() and len(whole) < 19 else -1


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in headers.items():
        for prefix in _METADATA:
            if name.lower().startswith(prefix):
                found[name.lower().removeprefix(prefix)] = value
    return found


def make_reader(place: ObjectPlace, clients: Clients, stop: Event) -> Reader:
    """The reader for a place."""
    return (AddressReader if clients.signs else NativeReader)(place, clients, stop)
