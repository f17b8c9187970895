"""How far the server is: written by the start and the drain, read by every health answer."""

import logging
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.progress import Progress
from mlimg.runtime.server.model import LoadedModel

log = logging.getLogger(__name__)
_REPORT_EVERY_SECONDS: Final = 10.0


class Phase(StrEnum):
    """What the server is doing."""

    STARTING = "starting"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    LOADING = "loading"
    WARMING = "warming-up"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class State:
    """The one mutable value of the server. Threads assign whole attributes; none is read to be changed."""

    phase: Phase = Phase.STARTING
    progress: Progress | None = None
    prepared: PreparedModel | None = None
    model: LoadedModel | None = None
    started: float = field(default_factory=time.monotonic)
    ready_after_seconds: float = 0.0
    _phase_since: float = field(default_factory=time.monotonic)
    _reported: float = 0.0

    def enter(self, phase: Phase) -> None:
        """Go on to another phase."""
        self._phase_since = time.monotonic()
        self.phase = phase
        log.info("%s", phase)

    def report(self, progress: Progress) -> None:
        """Take notice of how far the model's way is; called from several threads."""
        if progress.phase != self.phase:
            self.enter(Phase(progress.phase))
        self.progress = progress
        now = time.monotonic()
        if now - max(self._reported, self._phase_since) >= _REPORT_EVERY_SECONDS:
            self._reported = now
            log.info("%s: %d of %d bytes", progress.phase, progress.bytes_done, progress.bytes_total)

    def is_up(self, model: LoadedModel, prepared: PreparedModel) -> None:
        """The model answered its first request."""
        self.model, self.prepared = model, prepared
        self.ready_after_seconds = time.monotonic() - self.started
        self.enter(Phase.READY)

    def __str__(self) -> str:
        if self.model is None or self.prepared is None:
            return self.phase.value
        return (
            f"{self.model.name}:{self.model.version or 'unversioned'} from {self.prepared.source}, "
            f"{self.phase.value} after {self.ready_after_seconds:.1f} s"
        )

    @property
    def ready(self) -> bool:
        """Whether new requests are answered."""
        return self.phase is Phase.READY

    def to_json(self) -> dict[str, Any]:
        """What the readiness route tells."""
        if self.phase is not Phase.READY or self.model is None or self.prepared is None:
            return {"ready": False, "phase": self.phase.value, **self._rate()}
        manifest = self.prepared.manifest
        return {
            "ready": True,
            "model": self.model.name,
            "version": self.model.version,
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
