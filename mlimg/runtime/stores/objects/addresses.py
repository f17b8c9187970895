"""Addresses of a place that are signed here, so that our own HTTP asks for them and follows no redirect."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from urllib3.response import BaseHTTPResponse

from mlimg.runtime.errors import LimitError, MlimgError
from mlimg.runtime.oci.transport import Unavailable, read_capped
from mlimg.runtime.reference import ObjectPlace
from mlimg.runtime.stores.objects.refusals import code_of, refusal, translated
from mlimg.runtime.stores.objects.settings import Clients

_SIGNED_FOR: Final = timedelta(hours=1)
_NAME: Final = "x"  # stands for a path that does not matter


class Addresses:
    """Signs for one place, whose `clients` have the means to. Every method raises what credentials raise."""

    def __init__(self, place: ObjectPlace, clients: Clients) -> None:
        self._place = place
        self._clients = clients

    def of_object(self, key: str, method: str) -> str:
        """The address of an object below the prefix."""
        if self._clients.sas:
            return f"{self._clients.sas_base}/{quote(str(self._place.prefix / key))}?{self._clients.sas}"
        return self._signed(self._clients.reading, method, key)

    def with_query(self, query: Mapping[str, str], *, method: str = "GET", key: str = "") -> str:
        """The address of the bucket, or of the object of a whole `key`, with a query."""
        words, path = urlencode(query, quote_via=quote, safe=""), f"/{quote(key)}" if key else ""
        if self._clients.sas:
            return f"{self._clients.sas_base}{path}?{words}&{self._clients.sas}"
        # obstore adds a path to the address of a client, and signs what comes of it but for its fragment: in which
        # the path is here. So whatever identity obstore has found signs a query that obstore has no call for.
        client = self._clients.at(f"{self._bucket()}{path}?{words}#")
        return self._signed(client, method, _NAME).partition("#")[0]

    def _bucket(self) -> str:
        """The address of the bucket itself: that of an object without the object's path."""
        parts = urlsplit(self._signed(self._clients.reading, "GET", _NAME))
        path = parts.path.rsplit("/", len(self._place.prefix.parts) + 1)[0]
        return f"{parts.scheme}://{parts.netloc}{path}"

    def _signed(self, client: Any, method: str, key: str) -> str:
        import obstore  # noqa: PLC0415 (absent from servers that need none)

        try:
            address: Any = obstore.sign(client, method, key, _SIGNED_FOR)  # type: ignore[call-overload,unused-ignore]
        except Exception as error:  # obstore's base class, and ValueError
            raise translated(f"{self._place}/{key}", error) from None
        return str(address)


def refused(response: BaseHTTPResponse, what: str) -> tuple[str, MlimgError]:
    """What an unexpected answer means: the store's own code for it, "" where it gives none, and the error."""
    moved_to = response.headers.get("Location", "")
    try:
        body = read_capped(response, 65536, "an error page", seconds=10).decode(errors="replace")
    except (LimitError, Unavailable):
        body = ""
    code = code_of(body) or response.headers.get("x-ms-error-code", "")
    try:
        host = urlsplit(moved_to).netloc
    except ValueError:
        host = ""
    return code, refusal(what, response.status, body or f"<Code>{code}</Code>", moved_to=host)
