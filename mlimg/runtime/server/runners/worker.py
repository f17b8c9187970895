"""A worker that is a process: it loads the model as the server would, and answers calls until the server is gone."""

import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from mlimg.runtime import errors
from mlimg.runtime.errors import MlimgError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server import logs
from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.exchange import Call, Outcome, answer
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import import_handler
from mlimg.runtime.server.memory import settle
from mlimg.runtime.server.model import LoadedModel, load_model
from mlimg.runtime.server.runners import wire
from mlimg.runtime.server.runners.page import Page
from mlimg.runtime.server.settings import server_dir

log = logging.getLogger(__name__)
_FINALIZE_SECONDS: Final = 1.0  # for the handler's exit hooks
_ANSWERS: Final = 4  # in a message: the server works on some while this process predicts for others
_SLOW_SECONDS: Final = 0.001  # what took longer is answered at once


class Step(Enum):
    """How far a worker is that has not loaded its model."""

    IMPORTED = auto()
    WARMING = auto()


@dataclass(frozen=True, slots=True)
class Order:
    """What to load."""

    prepared: PreparedModel
    facts: ServerFacts
    warm_up: bool


Numbered = tuple[int, Sequence[Call]]  # a job
# A job's number, what its calls came to, and the seconds that it took. None: it was taken back before it was begun.
Answer = tuple[int, Sequence[Outcome] | None, float]


def work(link: socket.socket, page: Page) -> None:
    """Tell the steps, then the model's metadata or why there is none; then answer calls. Ends when the server does."""
    try:
        model = _load(link)
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        wire.send(link, portable(error))
        return
    wire.send(link, model.metadata)
    while True:
        _answer_all(model, wire.receive(link), link, page)


def _answer_all(model: LoadedModel, jobs: Sequence[Numbered], link: socket.socket, page: Page) -> None:
    """Answer jobs one by one, several answers in a message: each wakes the server, as a rule on this processor."""
    answers: list[Answer] = []
    begun = time.monotonic()
    for number, calls in jobs:
        page.at = number  # before looking: the server looks here after it has taken back
        outcomes = _answer(model, calls) if number > page.taken_back else None
        ended = time.monotonic()
        answers.append((number, outcomes, ended - begun))
        if len(answers) == _ANSWERS or ended - begun > _SLOW_SECONDS or number == jobs[-1][0]:
            wire.send(link, answers)
            answers = []
        page.at = 0
        begun = ended


def _load(link: socket.socket) -> LoadedModel:
    logs.set_up(os.environ)
    handler = import_handler(server_dir(os.environ))
    wire.send(link, Step.IMPORTED)
    order: Order = wire.receive(link)
    model = load_model(handler, order.prepared, order.facts)
    if order.warm_up:
        wire.send(link, Step.WARMING)
        model.warm_up()
    settle()
    return model


def _answer(model: LoadedModel, calls: Sequence[Call]) -> list[Outcome]:
    return [portable(outcome) if isinstance(outcome, Exception) else outcome for outcome in answer(model, calls)]


def portable(error: Exception) -> Exception:
    """What the server is told of an error, in classes that it knows: those of a handler are the worker's alone."""
    log.debug("traceback", exc_info=error)
    if isinstance(error, MlimgError):
        known: type[MlimgError] = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return known(error.message, hint=error.hint, log=error.log)
    for kind in (InputError, PredictionError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(logs.describe(error))


def _end_with_server(link: socket.socket) -> None:
    """End the process when the server's end is closed, whatever the handler is at."""
    poller = select.poll()
    poller.register(link, 0)  # what is always told: that the other end hung up
    poller.poll()
    time.sleep(_FINALIZE_SECONDS)
    os._exit(0)


def main(descriptor: int, page: int) -> None:
    """Work for the server that is at the other end, and shares a page with this process."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the server says when to stop; it finishes what is under way
        signal.signal(number, lambda _number, _frame: None)
    link = socket.socket(fileno=descriptor)
    link.set_inheritable(False)  # the handler's own processes
    threading.Thread(target=_end_with_server, args=(link,), name="server-watch", daemon=True).start()
    with suppress(EOFError, ConnectionError):
        work(link, Page(page))
