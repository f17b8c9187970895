"""Long calls to the engine: streamed both ways, in bounded memory, with time-outs that mean something.

The SDK's own streaming calls either have no time-out at all or hold whatever is sent to them, so these go through its
HTTP session. https://docs.docker.com/reference/api/engine/
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import docker
import requests
from docker.errors import create_api_error_from_http_exception

MAX_MESSAGE_BYTES: Final = 1024 * 1024
STALL_SECONDS: Final = 300.0
_READ_BYTES: Final = 1024 * 1024
_NOT_UNPACKED: Final = "Error unpacking image "

Message = Mapping[str, Any]
"""A line of the engine's progress, such as ``{"status": "Pushing", "id": "…"}`` or ``{"error": "…"}``."""


@contextmanager
def call(
    client: docker.APIClient,
    method: str,
    path: str,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    body: Iterable[bytes | memoryview] | None = None,
    send_seconds: float | None = STALL_SECONDS,
    stall_seconds: float = STALL_SECONDS,
) -> Iterator[requests.Response]:
    """Call the engine and read its answer as it comes. Raises what the SDK raises, APIError for a refusal.

    `send_seconds` bounds connecting and each write (None: none, a full disk cache can hold a write for long);
    `stall_seconds` bounds the wait for the answer and for each part of it.
    """
    response = client.request(
        method,
        f"{client.base_url}/v{client.api_version}{path}",
        params=dict(params or {}),
        headers=dict(headers or {}),
        data=cast("Iterable[bytes]", body),  # any buffer will do; a body that has a length is sent with it
        stream=True,
        timeout=(send_seconds, stall_seconds),
    )
    with response:
        try:
            response.raise_for_status()
        except requests.exceptions.HTTPError as error:
            create_api_error_from_http_exception(error)
        yield response


def parts(response: requests.Response) -> Iterator[bytes]:
    """The answer's body as it comes, in parts of at most one MiB."""
    parts: Iterator[bytes] = response.iter_content(_READ_BYTES)
    return parts


def messages(response: requests.Response) -> Iterator[Message]:
    """The answer's lines that are JSON objects. Others say nothing: what was done is always looked up afterwards."""
    pending = bytearray()
    too_long = False
    for part in parts(response):
        *lines, rest = part.split(b"\n")
        for line in lines:
            whole, pending[:] = bytes(pending + line), b""
            if not too_long:
                yield from _message(whole)
            too_long = False
        pending += rest
        if len(pending) > MAX_MESSAGE_BYTES:
            too_long = True
            pending.clear()
    yield from _message(bytes(pending))


def refusal(message: Message) -> str | None:
    """What an engine says in the middle of a stream when it fails, else None.

    Newer engines keep an image that they loaded and could not unpack; they say so by the way, and end well.
    https://github.com/moby/moby/blob/0031b7a46f6a/daemon/containerd/image_exporter.go
    """
    detail = message.get("errorDetail")
    text = detail.get("message") if isinstance(detail, dict) else message.get("error")
    if text is None and str(message.get("stream")).startswith(_NOT_UNPACKED):
        text = message["stream"]
    return text if isinstance(text, str) and text else None


def _message(line: bytes) -> Iterator[Message]:
    try:
        value = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        yield value
