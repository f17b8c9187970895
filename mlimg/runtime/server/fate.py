"""What it means for a model, and for the server, that worker processes come and go."""

from threading import Lock

from mlimg.runtime.server import logs
from mlimg.runtime.server.runners import Runner
from mlimg.runtime.server.runners.processes import ProcessRunner
from mlimg.runtime.server.state import ModelState, Phase, State


class Fate:
    """Keeps the state true to the workers. Threads of several runners call it."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = Lock()

    def changed(self, runner: ProcessRunner, *, restarted: bool) -> None:
        """A worker died, or was started again: a model without any is not ready, though its requests may wait."""
        with self._lock:
            self._state.restarts += restarted
            model = self._model(runner)
            if model is None:
                return
            if model.phase is Phase.READY and not runner.living:
                model.enter(Phase.LOADING)
            elif model.phase is Phase.LOADING and runner.living:
                model.enter(Phase.READY)

    def given_up(self, runner: Runner, error: Exception) -> None:
        """The workers keep dying: the model failed, and if no other is up, the process ends with the error's status."""
        with self._lock:
            model = self._model(runner)
            if model is None:
                return
            if any(other.phase is Phase.READY for other in self._state.models if other is not model):
                model.fail(error)
            else:
                logs.leave(logs.complain(error))

    def _model(self, runner: Runner) -> ModelState | None:
        return next((model for model in self._state.models if model.runner is runner), None)
