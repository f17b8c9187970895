"""From a started process to a model that answers: prepare, import, load, warm up."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from mlimg.runtime.errors import TemplateError
from mlimg.runtime.prepare import PreparedModel, prepare
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler, import_handler
from mlimg.runtime.server.model import load_model
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.server.state import Phase, State

log = logging.getLogger(__name__)


def start(environ: Mapping[str, str], settings: Settings, facts: ServerFacts, state: State, stop: Event) -> None:
    """Bring the model up; afterwards `state` is ready. Raises an MlimgError when that cannot be."""
    # The framework's import takes seconds of processor, the fetch seconds of network: side by side.
    with ThreadPoolExecutor(1, thread_name_prefix="import") as beside:
        importing = beside.submit(import_handler, settings.server_dir)
        importing.add_done_callback(lambda done: stop.set() if done.exception() else None)
        prepared, handler = _join(importing, environ, state, stop)
    if prepared.manifest is None:
        log.warning("%s has no mlimg.manifest: what is served is not verified", prepared.folder)
    else:
        facts.check_serves(prepared.manifest)
    state.enter(Phase.LOADING)
    model = load_model(handler, prepared, facts)
    if settings.warm_up:
        state.enter(Phase.WARMING)
        model.warm_up()
    state.is_up(model, prepared)


def _join(
    importing: Future[Handler], environ: Mapping[str, str], state: State, stop: Event
) -> tuple[PreparedModel, Handler]:
    """Prepare while the handler is imported; a handler that cannot be imported stops the fetch and is the reason."""
    try:
        prepared = prepare(environ, state.report, stop)
    except BaseException:
        if importing.done() and isinstance(importing.exception(), TemplateError):
            importing.result()
        raise
    return prepared, importing.result()
