"""Lets go of requests that take too long, or whose client is gone."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import ref

from starlette.exceptions import HTTPException

from mlimg.runtime.server.http import gone

log = logging.getLogger(__name__)
# Whoever is answered sooner is not looked after: a timer and a task for each cost as much as a small prediction.
_PATIENCE_SECONDS: Final = 0.02

# Of most requests nothing else is left when they are looked at: an answer may be large.
_Young = tuple[float, str, "ref[asyncio.Future[Any]]", Callable[[], Awaitable[object]]]


class Guards:
    """Settles the futures of requests after `seconds`, or when their client hangs up: what runs, runs on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._young: deque[_Young] = deque()  # in the order of the times at which they are looked at
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that has a timer of ours

    def watch(self, request_id: str, future: asyncio.Future[Any], hung_up: Callable[[], Awaitable[object]]) -> None:
        """Look after a request from now on; `hung_up` returns when its client is gone."""
        loop = future.get_loop()
        self._young.append((loop.time() + _PATIENCE_SECONDS, request_id, ref(future), hung_up))
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(_PATIENCE_SECONDS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self._young and self._young[0][0] <= now:
            _, request_id, found, hung_up = self._young.popleft()
            future = found()
            if future is not None and not future.done():
                _cancel_with(loop.create_task(self._guard(request_id, future, hung_up)), future)
        if self._young:
            loop.call_at(self._young[0][0], self._look, loop)
        else:
            self._loop = None

    async def _guard(
        self, request_id: str, future: asyncio.Future[Any], hung_up: Callable[[], Awaitable[object]]
    ) -> None:
        try:
            async with asyncio.timeout(self._seconds - _PATIENCE_SECONDS):
                await hung_up()
            error = gone()
        except TimeoutError:
            log.error("request %s: no answer within %g s", request_id, self._seconds)
            error = HTTPException(504, f"no answer within {self._seconds:g} s")
        if not future.done():
            future.set_exception(error)


def _cancel_with(guard: asyncio.Task[None], future: asyncio.Future[Any]) -> None:
    future.add_done_callback(lambda _: guard.cancel())
