"""How far the server and its models are: written by the start and the drain, read by every health answer."""

import logging
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from mlimg.runtime.errors import MlimgError, printable
from mlimg.runtime.locate import Located
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.progress import Progress
from mlimg.runtime.server.logs import describe
from mlimg.runtime.server.runners import Runner

log = logging.getLogger(__name__)
_REPORT_EVERY_SECONDS: Final = 10.0


class Phase(StrEnum):
    """What the server is doing, or is doing with a model."""

    STARTING = "starting"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    LOADING = "loading"
    WARMING = "warming-up"
    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    DRAINING = "draining"


@dataclass(slots=True)
class ModelState:
    """One model on its way to answering. Threads assign whole attributes; none is read to be changed.

    `name` is empty as long as a server of one model does not know it.
    """

    name: str = ""
    located: Located | None = None
    phase: Phase = Phase.STARTING
    progress: Progress | None = None
    prepared: PreparedModel | None = None
    runner: Runner | None = None
    failure: BaseException | None = None
    started: float = field(default_factory=time.monotonic)
    ready_after_seconds: float = 0.0
    phase_seconds: dict[Phase, float] = field(default_factory=dict)
    _phase_since: float = field(default_factory=time.monotonic)
    _reported: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether it is up, or will not be."""
        return self.unloaded or self.phase in {Phase.READY, Phase.FAILED}

    @property
    def unloaded(self) -> bool:
        """Whether it was up, and is not meant to be any more."""
        return self.phase in {Phase.UNLOADING, Phase.UNLOADED}

    @property
    def reason(self) -> str:
        """Why it does not answer, on one line."""
        error = self.failure
        if error is None:
            return "" if self.phase is Phase.READY else self.phase.value
        return printable(error.message) if isinstance(error, MlimgError) else describe(error)

    def enter(self, phase: Phase) -> None:
        """Go on to another phase."""
        now = time.monotonic()
        self.phase_seconds[self.phase] = self.phase_seconds.get(self.phase, 0.0) + now - self._phase_since
        self._phase_since = now
        self.phase = phase
        log.info("%s%s", self._label, phase)

    def report(self, progress: Progress) -> None:
        """Take notice of how far the model's way is; called from several threads."""
        if progress.phase != self.phase:
            self.enter(Phase(progress.phase))
        self.progress = progress
        now = time.monotonic()
        if now - max(self._reported, self._phase_since) >= _REPORT_EVERY_SECONDS:
            self._reported = now
            log.info("%s%s: %d of %d bytes", self._label, progress.phase, progress.bytes_done, progress.bytes_total)

    def is_up(self, runner: Runner, prepared: PreparedModel) -> None:
        """The model answered its first request."""
        self.runner, self.prepared, self.name = runner, prepared, runner.metadata.name
        self.ready_after_seconds = time.monotonic() - self.started
        self.enter(Phase.READY)

    def fail(self, error: BaseException) -> None:
        """The model will not answer: the others go on without it."""
        self.failure = error
        self.phase = Phase.FAILED
        hint = f" (hint: {printable(error.hint)})" if isinstance(error, MlimgError) and error.hint else ""
        log.error("%sfailed: %s%s", self._label, self.reason, hint)
        log.debug("traceback", exc_info=error)

    def entry(self, reason: str) -> dict[str, str]:
        """The model as an index lists it; it is ready where there is no reason why not."""
        state = {Phase.FAILED: "UNAVAILABLE", Phase.UNLOADED: "UNAVAILABLE", Phase.UNLOADING: "UNLOADING"}
        version = (self.runner and self.runner.metadata.version) or ""
        told = state.get(self.phase, "UNAVAILABLE" if self.runner else "LOADING") if reason else "READY"
        return {"name": self.name, "version": version, "state": told, "reason": reason}

    @property
    def _label(self) -> str:
        return f"{self.name}: " if self.name else ""

    def __str__(self) -> str:
        if self.runner is None or self.prepared is None:
            return f"{self._label}{self.phase}"
        return (
            f"{self.name}:{self.runner.metadata.version or 'unversioned'} from {self.prepared.source}, "
            f"{self.phase} after {self.ready_after_seconds:.1f} s"
        )

    def to_json(self) -> dict[str, Any]:
        """What the readiness route tells of it."""
        if self.failure is not None:
            return {"ready": False, "model": self.name, "phase": self.phase.value, "reason": self.reason}
        if self.phase is not Phase.READY or self.runner is None or self.prepared is None:
            named = {"model": self.name} if self.name else {}
            return {"ready": False, **named, "phase": self.phase.value, **self._rate()}
        manifest = self.prepared.manifest
        return {
            "ready": True,
            "model": self.name,
            "version": self.runner.metadata.version,
            "digest": manifest.digest.text if manifest else None,
            "source": self.prepared.source,
            "seconds": round(self.ready_after_seconds, 3),
            "bytes": self.prepared.fetched_bytes,
            "cacheHit": self.prepared.cache_hit,
        }

    def _rate(self) -> dict[str, Any]:
        progress, seconds = self.progress, time.monotonic() - self._phase_since
        if progress is None or progress.phase != self.phase:
            return {"seconds": round(time.monotonic() - self.started, 3)}
        return {
            "seconds": round(time.monotonic() - self.started, 3),
            "bytes": progress.bytes_done,
            "bytesTotal": progress.bytes_total,
            "bytesPerSecond": round(progress.bytes_done / max(seconds, 0.001)),
        }


@dataclass(slots=True)
class State:
    """The one mutable value of the server: its models, none as long as nobody knows which.

    `coming` are those that are brought up beside them, by name: each takes its place among `models` when it is up.
    """

    models: tuple[ModelState, ...] = ()
    coming: dict[str, ModelState] = field(default_factory=dict)
    draining: bool = False
    restarts: int = 0  # of worker processes that died
    started: float = field(default_factory=time.monotonic)

    @property
    def phase(self) -> Phase:
        """What the server is doing: what it does with its model where there is one."""
        if self.draining:
            return Phase.DRAINING
        if len(self.models) == 1:
            return self.models[0].phase
        return Phase.READY if self.ready else Phase.STARTING

    @property
    def settled(self) -> bool:
        """Whether each model is up, or will not be."""
        return bool(self.models) and all(model.settled for model in self.models)

    @property
    def answers(self) -> bool:
        """Whether a model is up."""
        return any(model.phase is Phase.READY for model in self.models)

    @property
    def ready(self) -> bool:
        """Whether new requests are answered: no model is still on its way, and one at least is up, or was unloaded.

        Triton has it so, too: what somebody unloads does not make the server one that failed.
        """
        return not self.draining and self.settled and (self.answers or any(model.unloaded for model in self.models))

    def drain(self) -> None:
        """Take on nothing new."""
        self.draining = True
        log.info("%s", Phase.DRAINING)

    def __str__(self) -> str:
        return "; ".join(map(str, self.models)) or self.phase.value

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """The models as Triton's repository index lists them: name, version, state, reason."""
        entries = [
            model.entry("draining" if self.draining else model.reason)
            for model in self.models
            if model.name and not (model.runner is None and model.name in self.coming)
        ]
        entries += [model.entry(model.reason) for model in self.coming.values()]
        return [entry for entry in entries if entry["state"] == "READY" or not only_ready]

    def to_json(self) -> dict[str, Any]:
        """What the readiness route tells."""
        several = len(self.models) > 1 or any(model.unloaded for model in self.models)
        if len(self.models) == 1 and not several and not self.draining:
            return self.models[0].to_json()
        value: dict[str, Any] = {"ready": self.ready, "phase": self.phase.value}
        value["seconds"] = round(time.monotonic() - self.started, 3)
        if several:
            value["models"] = [model.to_json() for model in self.models]
        return value
