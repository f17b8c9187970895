"""From a started process to models that answer: prepare, import, load, warm up."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Any, Final

from mlimg.runtime.errors import ConflictError, MlimgError, ModelError, Stopped, TemplateError
from mlimg.runtime.locate import locate_all
from mlimg.runtime.manifest import MANIFEST_NAME
from mlimg.runtime.prepare import PreparedModel, prepare_located
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.fate import Fate
from mlimg.runtime.server.handler import import_handler
from mlimg.runtime.server.leader import Pause
from mlimg.runtime.server.runners import Loader
from mlimg.runtime.server.runners.processes import ProcessLoader, start_workers
from mlimg.runtime.server.runners.threads import ThreadLoader, Threads
from mlimg.runtime.server.settings import Settings, server_dir
from mlimg.runtime.server.state import ModelState, Phase, State

log = logging.getLogger(__name__)
_PREPARED_AT_ONCE: Final = 4  # models; each fetch has connections and threads of its own


@dataclass(frozen=True, slots=True)
class WayUp:
    """The way on which each model comes up, at the start or later, in threads beside the event loop."""

    environ: Mapping[str, str]
    facts: ServerFacts
    loader: Loader
    stop: Event

    def prepare(self, model: ModelState) -> PreparedModel:
        """Bring what `model` names here, and verify it. Raises as `prepare_located`."""
        assert model.located is not None  # noqa: S101 (it has a way to go)
        return prepare_located(model.located, self.environ, model.report, self.stop)

    def load(self, model: ModelState, prepared: PreparedModel, others: Sequence[ModelState]) -> None:
        """Load what was prepared, and let it answer once. Raises ModelError, LimitError, ConflictError."""
        self._check(prepared, others)
        model.enter(Phase.LOADING)
        model.is_up(self.loader.load(prepared, lambda: model.enter(Phase.WARMING)), prepared)

    def _check(self, prepared: PreparedModel, others: Sequence[ModelState]) -> None:
        """See that the server serves it, and that its name is its own."""
        manifest = prepared.manifest
        if manifest is not None:
            self.facts.check_serves(manifest)
            if any(other.name == manifest.name for other in others):
                raise ConflictError(
                    f"{prepared.source} is a second model `{manifest.name}`", hint="give one of them another name"
                )
        elif others:
            raise ModelError(
                f"{prepared.folder} has no {MANIFEST_NAME}: among several models, it says which is which",
                hint="publish the model with mlimg",
            )
        else:
            log.warning("%s has no %s: what is served is not verified", prepared.folder, MANIFEST_NAME)


def start(
    environ: Mapping[str, str],
    settings: Settings,
    facts: ServerFacts,
    state: State,
    stop: Event,
    *,
    pause: Pause | None = None,
) -> WayUp:
    """Bring the models up; afterwards `state` is ready. The way that they came, for those that come later.

    Of several, one that cannot be brought up is left out and says why. Raises an MlimgError when there is no other.
    """
    # The framework's import takes seconds of processor, the fetch seconds of network: side by side.
    with ThreadPoolExecutor(1, thread_name_prefix="import") as beside:
        importing, loader = _loader(environ, settings, facts, state, beside, pause=pause)
        importing.add_done_callback(lambda done: stop.set() if done.exception() else None)
        try:
            located = locate_all(environ)
            state.models = tuple(ModelState(place.name, place, started=state.started) for place in located)
            way = WayUp(environ, facts, loader, stop)
            _bring_up(way, state.models)
        except BaseException:
            # A handler that cannot be imported stops the fetches and is the reason.
            if importing.done() and isinstance(importing.exception(), MlimgError):
                importing.result()
            raise
    return way


def _loader(
    environ: Mapping[str, str],
    settings: Settings,
    facts: ServerFacts,
    state: State,
    beside: ThreadPoolExecutor,
    *,
    pause: Pause | None,
) -> tuple[Future[Any], Loader]:
    """The import of the handler, here or where workers are processes in each of them, and what loads models with it."""
    if settings.in_processes:
        starting = beside.submit(start_workers, environ, settings.workers, settings.workers)
        return starting, ProcessLoader(starting, environ, settings, facts, Fate(state))
    importing = beside.submit(import_handler, server_dir(environ))
    return importing, ThreadLoader(importing, facts, Threads(settings.workers, pause), warm_up=settings.warm_up)


def _bring_up(way: WayUp, models: Sequence[ModelState]) -> None:
    with ThreadPoolExecutor(_PREPARED_AT_ONCE, thread_name_prefix="prepare") as preparing:
        prepared = {preparing.submit(way.prepare, model): model for model in models}
        # One after another, as they come: no framework promises that it loads in several threads at once.
        while prepared:
            wait(prepared, return_when=FIRST_COMPLETED)
            done = next(future for future in prepared if future.done())
            model = prepared.pop(done)
            try:
                way.load(model, done.result(), [other for other in models if other is not model])
            except (Stopped, TemplateError):
                raise
            except Exception as error:  # whatever it is, the other models have no part in it
                if len(models) == 1:
                    raise
                model.fail(error)
    failures = [model.failure for model in models if model.failure]
    if len(failures) == len(models):
        raise failures[0]
