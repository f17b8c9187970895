"""What every protocol shares: the models by name, admission, time-outs, and answers to what goes wrong."""

import logging
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

from mlimg.runtime.server.compression import check_encoding, inflated
from mlimg.runtime.server.dispatcher import Dispatcher, Saturated
from mlimg.runtime.server.errors import InputError, PredictionError, WorkerLost
from mlimg.runtime.server.exchange import Call, Codec, Reply
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.guards import Guards
from mlimg.runtime.server.http import RETRY, Room, disconnected, header, read_body
from mlimg.runtime.server.metrics import Metrics
from mlimg.runtime.server.repository import Repository
from mlimg.runtime.server.runners import Runner
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.server.start import WayUp
from mlimg.runtime.server.state import ModelState, State

log = logging.getLogger(__name__)


class Service:
    """The server as protocols see it."""

    def __init__(self, state: State, settings: Settings, facts: ServerFacts) -> None:
        self.state = state
        self.facts = facts
        self.settings = settings
        self.metrics = Metrics(state)
        places = settings.workers + settings.queue
        self.dispatcher = Dispatcher(places, settings.batching, self.metrics)
        # As much as the queue may hold: then all requests have at most twice that.
        self.room = Room(places * settings.body_limit_bytes)
        self._guards = Guards(settings.request_timeout_seconds)
        self._repository: Repository | None = None  # until the models are up, and where it is not enabled
        self._held: dict[Runner, int] = {}

    def open_repository(self, way: WayUp) -> None:
        """Let models be loaded by request, on the way on which those that are up came."""
        self._repository = Repository(self.state, way, self.holds, self.settings.repository_allow)

    @property
    def repository(self) -> Repository:
        """What loads models by request, where that is enabled. Raises HTTPException until the models are up."""
        if self._repository is None:
            raise HTTPException(503, "the server is starting", RETRY)
        return self._repository

    def runner(self, name: str | None = None, version: str | None = None) -> Runner:
        """The model of a URL, or the server's only one.

        It is to be given to `infer` or `call` at once: until then a model that is unloaded may be closed.
        Raises HTTPException: 503 while there is none, or it failed; 404 for another; 400 when it is to be named.
        """
        found = self._find(name)
        if found is None and not self.state.settled:  # its name may come with it
            raise HTTPException(503, f"the model is not ready: {self.state.phase.value}", RETRY)
        if found is None and name is None:
            raise HTTPException(400, "this server has several models: name one in the URL")
        if found is None or (found.runner and version not in (None, found.runner.metadata.version)):
            raise HTTPException(404, "unknown model or version")
        if found.unloaded:
            raise HTTPException(404, "the model is unloaded")
        if found.failure is not None:
            raise HTTPException(503, f"the model failed: {found.reason}")
        if found.runner is None:
            raise HTTPException(503, f"the model is not ready: {found.phase.value}", RETRY)
        return found.runner

    def _find(self, name: str | None) -> ModelState | None:
        models = self.state.models
        if name is None:
            return models[0] if len(models) == 1 else None
        return next((model for model in models if model.name == name), None)

    def check_free(self) -> None:
        """Refuse a request while the queue is full, before a byte of its body takes memory. Raises HTTPException."""
        if self.dispatcher.saturated:
            raise _saturated()

    async def infer(self, scope: Scope, receive: Receive, runner: Runner, codec: Codec) -> Reply:
        """Let `runner` answer the request. Raises HTTPException."""
        self.check_free()
        self._hold(runner)
        try:
            body = await self._read(scope, receive)
            call = Call(codec, body, scope["context"])
            return await self.call(scope["request_id"], runner, call, lambda: disconnected(receive))
        finally:
            self._let_go(runner)

    async def call(
        self, request_id: str, runner: Runner, call: Call, hung_up: Callable[[], Awaitable[object]]
    ) -> Reply:
        """Let `runner` answer `call`, but not for ever, and not once `hung_up` returns. Raises HTTPException."""
        try:
            future = self.dispatcher.submit(runner, call)
        except Saturated:
            raise _saturated() from None
        self._guards.watch(request_id, future, hung_up)
        self._hold(runner)
        try:
            return await future
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        except PredictionError as error:
            log.error("request %s failed", request_id, exc_info=error)
            raise HTTPException(500, "the model failed on this request") from error
        except WorkerLost as error:
            log.error("request %s failed", request_id, exc_info=error)
            raise HTTPException(503, "the worker that had this request died", RETRY) from error
        finally:
            self._let_go(runner)

    async def read(self, scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
        """The body of a request that no model answers. Raises HTTPException."""
        return await read_body(scope, receive, limit_bytes, self.room)

    def holds(self, runner: Runner) -> bool:
        """Whether somebody waits for an answer of `runner`."""
        return runner in self._held

    def _hold(self, runner: Runner) -> None:
        self._held[runner] = self._held.get(runner, 0) + 1

    def _let_go(self, runner: Runner) -> None:
        self._held[runner] -= 1
        if self._held[runner] == 0:
            del self._held[runner]

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        encoding, limit_bytes = header(scope, b"content-encoding").lower(), self.settings.body_limit_bytes
        compressed = encoding not in ("", "identity")
        if compressed:
            check_encoding(encoding)
        body = await read_body(scope, receive, limit_bytes, self.room)
        return await inflated(body, encoding, limit_bytes) if compressed else body


def _saturated() -> HTTPException:
    return HTTPException(503, "all workers are busy and the queue is full", RETRY)
