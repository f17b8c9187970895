"""The life of a server around its event loop: listen, start, serve, drain."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

import uvicorn

from mlimg.runtime.server import logs
from mlimg.runtime.server.app import Door, make_app
from mlimg.runtime.server.connection import limited
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.leader import Leader, Pause
from mlimg.runtime.server.listening import BACKLOG, turn_away
from mlimg.runtime.server.protocols.table import PROTOCOLS
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.server.start import start
from mlimg.runtime.server.state import State

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
# In a turn of the event loop, even where no file can be opened any more. Three turns' connections are open before the
# first of them is counted: they have to fit into the files that the limit of connections leaves.
_ACCEPTED_AT_ONCE: Final = 8
_SWITCH_SECONDS: Final = 0.001  # how long the event loop may wait for a handler that computes in Python: usually 5 ms
_STOP_SECONDS: Final = 1.0  # for a fetch to put away what it has
_LINGER_SECONDS: Final = 0.2  # in which no request came, before connections that are kept are closed
_FAREWELL_SECONDS: Final = 1.0  # for connections to be closed when nothing is left of the grace
_POLL_SECONDS: Final = 0.02


class _Listener(uvicorn.Server):
    """uvicorn without its signal handlers: the lifecycle has its own."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept. asyncio's number of connections taken at once shortened their queue as well."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(environ: Mapping[str, str], settings: Settings, facts: ServerFacts, listener: socket.socket) -> int:
    """Serve on `listener` until a signal; the exit status."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner() as runner:
        leader = Leader[int](runner.get_loop())
        lifecycle = _Lifecycle(environ, settings, facts, leader.pause)
        for number in _SIGNALS:  # which Python lets only the main thread do
            runner.get_loop().add_signal_handler(number, lifecycle.on_signal, number)
        os.register_at_fork(after_in_child=_forget_signals)
        status = leader.run(lifecycle.run(listener))
        if status != 0:
            logs.leave(status)
    return status


def _forget_signals() -> None:
    """Let a process that a handler forks end by its own signals: what it has inherited tells this server's loop."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


class _Other(Protocol):
    """A server beside that of HTTP, on a port of its own."""

    @property
    def under_way(self) -> int:
        """How many requests are not answered yet."""
        ...

    async def start(self) -> None:
        """Listen. Raises LocalIOError."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Close the port; nothing is under way."""
        ...


class _Lifecycle:
    def __init__(self, environ: Mapping[str, str], settings: Settings, facts: ServerFacts, pause: Pause) -> None:
        self._pause = pause
        self._environ = environ
        self._settings = settings
        self._facts = facts
        self._state = State()
        service = Service(self._state, settings, facts)
        self._service = service
        routes = [route for protocol in PROTOCOLS for route in protocol(service)]
        self._door: Door = make_app(routes, service)
        self._others = [] if settings.grpc_port is None else [_grpc_server(service, settings.host, settings.grpc_port)]
        self._signals: list[int] = []
        self._told = asyncio.Event()
        self._told_again = asyncio.Event()

    async def run(self, listener: socket.socket) -> int:
        for other in self._others:
            await other.start()
        server = _Listener(_uvicorn_config(self._door, self._settings))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        told = asyncio.create_task(self._told.wait())
        stop = threading.Event()
        starting = asyncio.wrap_future(
            _in_thread(lambda: start(self._environ, self._settings, self._facts, self._state, stop, pause=self._pause))
        )
        first: set[asyncio.Future[Any]] = {starting, told, serving}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.info("stopped while %s", self._state.phase.value)
            stop.set()
            await asyncio.wait({starting}, timeout=_STOP_SECONDS)
            if not self._state.answers:
                return 128 + self._signals[0]
            return await self._drain(server, serving, listener)  # of several models one is up, and may be at work
        failure = starting.exception()
        if failure is not None:
            return logs.complain(failure)
        log.info("listening on port %d: %s", listener.getsockname()[1], self._state)
        if self._settings.repository_api:
            self._service.open_repository(starting.result())
        await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()  # for a model that is fetched just now
        return await self._drain(server, serving, listener)

    async def _drain(self, server: _Listener, serving: asyncio.Task[None], listener: socket.socket) -> int:
        """Finish what was taken on. New requests are refused by name until the last answer is out."""
        self._state.drain()
        idle = asyncio.create_task(self._idle())
        again = asyncio.create_task(self._told_again.wait())
        grace, since = self._settings.grace_seconds, time.monotonic()
        await asyncio.wait({idle, again}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            why = "a second signal" if again.done() else f"the grace of {grace:g} s is over"
            log.error("%s: %d requests abandoned", why, self._under_way)
            return 128 + self._signals[-1]
        turn_away(listener)
        await self._quiet(server, since + grace)
        server.should_exit = True
        # No answer is under way, but the ends of some may be: they have what is left of the grace.
        left = max(_FAREWELL_SECONDS, since + grace - time.monotonic())
        await asyncio.wait({serving, again}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()  # what broke it is no orderly end
        for other in self._others:
            await other.stop(max(_FAREWELL_SECONDS, since + grace - time.monotonic()))
        log.info("drained")
        return 0

    @property
    def _under_way(self) -> int:
        return self._door.under_way + sum(other.under_way for other in self._others)

    async def _quiet(self, server: _Listener, until: float) -> None:
        """Refuse by name on connections that are kept, as long as requests come: closed now, some would lose theirs."""
        answered = -1
        while answered != server.server_state.total_requests and time.monotonic() < until:
            answered = server.server_state.total_requests
            await asyncio.sleep(_LINGER_SECONDS)

    async def _idle(self) -> None:
        while self._under_way or self._state.coming:  # a load goes on when its client is gone
            await asyncio.sleep(_POLL_SECONDS)

    def on_signal(self, number: int) -> None:
        (self._told_again if self._signals else self._told).set()
        self._signals.append(number)


def _grpc_server(service: Service, host: str, port: int) -> _Other:
    # Its packages are there only where the option is on. They write to stderr what is no line of our log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from mlimg.runtime.server.grpc_v2.server import GrpcServer  # noqa: PLC0415

    return GrpcServer(service, host, port)


def _uvicorn_config(app: Door, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited(settings.limits),
        ws="none",
        loop="asyncio",
        backlog=_ACCEPTED_AT_ONCE,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
    )


def _in_thread(work: Callable[[], _T]) -> Future[_T]:
    """Run `work` in a thread that cannot keep the process alive."""
    future: Future[_T] = Future()

    def run_and_tell() -> None:
        try:
            result = work()
        except BaseException as error:  # SystemExit too: it must end the server, not the thread
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run_and_tell, name="start", daemon=True).start()
    return future
