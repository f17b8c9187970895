"""`serve`: listen at once, bring the model up beside, answer, and drain when told to stop."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import NoReturn

from mlimg.runtime.server import logs
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.listening import listen
from mlimg.runtime.server.settings import Settings, server_dir

_FINALIZE_SECONDS = 2.0


def serve(environ: Mapping[str, str]) -> NoReturn:
    """Serve until a signal ends it. The process ends here, with the status of the runtime contract."""
    for number in (signal.SIGTERM, signal.SIGINT):  # until the event loop takes them over
        signal.signal(number, lambda number, _frame: os._exit(128 + number))
    try:
        logs.set_up(environ)
        facts = ServerFacts.load(server_dir(environ))
        settings = Settings.parse(environ, facts.serving)
        listener = listen(settings)
        status = _run(environ, settings, facts, listener)
    except Exception as error:  # the last border: one line, whatever it is
        status = logs.complain(error)
    _end(status)


def _run(environ: Mapping[str, str], settings: Settings, facts: ServerFacts, listener: socket.socket) -> int:
    if environ.get("AWS_LAMBDA_RUNTIME_API"):
        from mlimg.runtime.server import lambda_runtime  # noqa: PLC0415 (nowhere else)

        os.environ.update(lambda_runtime.FOLDERS)
        lambda_runtime.start(environ, listener.getsockname()[1])
    # Only now, with the port open: these take a good part of a second.
    from mlimg.runtime.server.lifecycle import run  # noqa: PLC0415

    return run(environ, settings, facts, listener)


def _end(status: int) -> NoReturn:
    """Leave; a handler's thread or exit hook that hangs cannot keep the process."""
    if status == 0:
        timer = threading.Timer(_FINALIZE_SECONDS, os._exit, (0,))
        timer.daemon = True
        timer.start()
        sys.exit(0)
    logs.leave(status)
