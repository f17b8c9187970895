"""What every protocol shares: the loaded model, admission, time-outs, and answers to what goes wrong."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.pool import Pool, Saturated
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.server.state import State

log = logging.getLogger(__name__)
Work = Callable[[LoadedModel, bytes], bytes]
RETRY = {"Retry-After": "1"}


class JSON(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode `content`; bytes are JSON already."""
        return content if isinstance(content, bytes) else json.dumps(content, allow_nan=False).encode()


class Service:
    """The server as protocols see it."""

    def __init__(self, state: State, settings: Settings, facts: ServerFacts) -> None:
        self.state = state
        self.facts = facts
        self._settings = settings
        self._pool = Pool(settings.workers, settings.queue)

    def model(self, name: str, version: str | None) -> LoadedModel:
        """The model of a URL. Raises HTTPException: 503 while there is none, or it failed; 404 for another."""
        found = next((model for model in self.state.models if model.name == name), None)
        if found is None and not self.state.settled:  # its name may come with it
            raise HTTPException(503, f"the model is not ready: {self.state.phase.value}", RETRY)
        if found is None or (found.model and version not in (None, found.model.version)):
            raise HTTPException(404, "unknown model or version")
        if found.failure is not None:
            raise HTTPException(503, f"the model failed: {found.reason}")
        if found.model is None:
            raise HTTPException(503, f"the model is not ready: {found.phase.value}", RETRY)
        return found.model

    async def answer(self, request: Request, model: LoadedModel, work: Work) -> Response:
        """Run `work` on the request's body in the pool. Raises HTTPException."""
        if self._pool.saturated:  # before a byte of the body takes memory
            raise _saturated()
        body = await self._read(request)
        try:
            return JSON(await self._run(request, lambda: work(model, body)))
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        except PredictionError as error:
            log.error("request %s failed", request.scope["request_id"], exc_info=error)
            raise HTTPException(500, "the model failed on this request") from error

    async def _read(self, request: Request) -> bytes:
        limit = self._settings.body_limit_bytes
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "compressed bodies are not taken")
        too_large = HTTPException(413, f"the body is over {limit // 2**20} MiB")
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 18 or int(length) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise HTTPException(408, "the body took too long") from None
        except ClientDisconnect:
            raise _gone() from None
        return bytes(body)

    async def _run(self, request: Request, work: Callable[[], bytes]) -> bytes:
        try:
            future = asyncio.wrap_future(self._pool.submit(work))
        except Saturated:
            raise _saturated() from None
        gone = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {future, gone}
        seconds = self._settings.request_timeout_seconds
        try:
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if gone.done():
                raise _gone()
            log.error("request %s: no answer within %g s", request.scope["request_id"], seconds)
            raise HTTPException(504, f"no answer within {seconds:g} s")
        finally:
            gone.cancel()
            future.cancel()  # what still waits is never started; what runs, runs on and is forgotten


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _gone() -> HTTPException:
    return HTTPException(499, "the client is gone")


def _saturated() -> HTTPException:
    return HTTPException(503, "all workers are busy and the queue is full", RETRY)
