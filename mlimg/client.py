"""A client of running servers, for `mlimg predict` and for waiting until a container is ready."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from mlimg.runtime.errors import RemoteError, RemoteTemporaryError, UsageError, printable
from mlimg.runtime.variables import READY_PATH

TIMEOUT_SECONDS: Final = 120.0
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
_TEMPORARY: Final = frozenset({429, 502, 503, 504})


class Client:
    """A V2 server at `url`. Proxies of the environment are for the outside: loopback is reached directly."""

    def __init__(self, url: str, *, local: bool = False) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url {printable(url)}: not an http:// or https:// address")
        self._url = url.rstrip("/")
        proxies = urllib.request.ProxyHandler({} if local else None)
        self._opener = urllib.request.build_opener(proxies)

    def inputs(self, model: str) -> list[dict[str, Any]]:
        """The inputs that the model's metadata names; none where it does not tell."""
        described = self._call(f"/v2/models/{quote(model, safe='')}")
        inputs = described.get("inputs") or []
        return [value for value in inputs if isinstance(value, dict) and "name" in value]

    def infer(self, model: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for predictions."""
        return self._call(f"/v2/models/{quote(model, safe='')}/infer", json.dumps(request).encode())

    def not_ready(self, path: str = READY_PATH) -> str:
        """Why the server would not take a request now, by what it answers at `path`; empty when it would."""
        try:
            with self._opener.open(f"{self._url}{path}", timeout=2) as response:
                return "" if response.status == 200 else f"it answers {response.status}"
        except urllib.error.HTTPError as error:
            error.close()
            return f"it answers {error.code}"
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out
            return printable(str(error)) or type(error).__name__

    def _call(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        # The scheme is one of two, checked above.
        request = urllib.request.Request(  # noqa: S310
            self._url + path, data=body, headers={"Content-Type": "application/json"} if body else {}
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                data = response.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise self._refusal(path, error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise RemoteTemporaryError(
                f"{self._url}: no server answers: {printable(str(reason))}", hint="`mlimg run --detach` starts one"
            ) from error
        try:
            answer = json.loads(data) if len(data) <= MAX_ANSWER_BYTES else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RemoteError(f"{self._url}{path}: the answer is not a JSON object of at most 256 MiB")
        return answer

    def _refusal(self, path: str, error: urllib.error.HTTPError) -> RemoteError | RemoteTemporaryError:
        try:
            with error:
                said = json.loads(error.read(64 * 1024))["error"]
        except (OSError, ValueError, KeyError, TypeError):
            said = error.reason
        kind = RemoteTemporaryError if error.code in _TEMPORARY else RemoteError
        return kind(f"{self._url}{path}: the server answers {error.code}: {printable(str(said))}")
