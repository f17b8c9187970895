"""What the server counts and times, for Prometheus. Labels are never a client's text.

https://prometheus.io/docs/practices/naming/
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from mlimg.runtime.server.state import Phase, State

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The counters of one server."""

    def __init__(self, state: State) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Models(state))
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        labels = ("protocol", "model")
        self._requests = Counter(
            "mlimg_requests", "Requests answered, by HTTP status.", (*labels, "status"), registry=self._registry
        )
        self._duration = Histogram(
            "mlimg_request_duration_seconds",
            "From a request's head to the end of its answer.",
            labels,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._queued = Histogram(
            "mlimg_queue_duration_seconds",
            "How long requests waited for a worker.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch = Histogram(
            "mlimg_batch_size", "Requests that were predicted as one.", buckets=_SIZES, registry=self._registry
        )

    def answered(self, protocol: str, model: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        found = self._children.get((protocol, model, status))
        if found is None:
            counter = self._requests.labels(protocol, model, str(status))
            found = self._children[protocol, model, status] = (counter, self._duration.labels(protocol, model))
        counter, histogram = found
        counter.inc()
        histogram.observe(seconds)

    def begun(self, waited_seconds: Sequence[float]) -> None:
        """Count a batch that a worker was given, by how long each of its requests had waited."""
        self._batch.observe(len(waited_seconds))
        for seconds in waited_seconds:
            self._queued.observe(seconds)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is asked when somebody looks."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def render(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self._registry)


class _Models(Collector):
    """What the state says of each model, when somebody looks: a model that was switched leaves nothing behind."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily("mlimg_ready", "Whether the server answers requests.")
        ready.add_metric((), float(self._state.ready))
        model_ready = GaugeMetricFamily("mlimg_model_ready", "Whether a model answers.", labels=("model", "version"))
        start = GaugeMetricFamily(
            "mlimg_model_start_seconds", "From the beginning to a model's readiness.", labels=("model", "version")
        )
        phases = GaugeMetricFamily(
            "mlimg_model_phase_seconds",
            "How long a model took to be fetched, verified, loaded and warmed up.",
            labels=("model", "version", "phase"),
        )
        fetched = GaugeMetricFamily(
            "mlimg_model_fetched_bytes", "Bytes that were fetched of a model.", labels=("model", "version")
        )
        restarts = CounterMetricFamily(
            "mlimg_worker_restarts", "Worker processes that came up in place of one that died.", self._state.restarts
        )
        for model in self._state.models:
            version = (model.runner and model.runner.metadata.version) or ""
            names = (model.name, version)
            model_ready.add_metric(names, float(model.phase is Phase.READY))
            if model.prepared is None:
                continue
            start.add_metric(names, model.ready_after_seconds)
            fetched.add_metric(names, model.prepared.fetched_bytes)
            for phase, seconds in model.phase_seconds.items():
                phases.add_metric((*names, phase.value), seconds)
        return ready, restarts, model_ready, start, phases, fetched
