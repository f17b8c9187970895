"""What the server counts and times, for Prometheus. Labels are never a client's text.

https://prometheus.io/docs/practices/naming/
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from mlimg.runtime.server.state import Phase, State

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Metrics:
    """The counters of one server."""

    def __init__(self, state: State) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Models(state))
        self._requests = _Requests()
        self._registry.register(self._requests)

    def answered(self, protocol: str, model: str, status: int, seconds: float) -> None:
        """Count a request that was answered. The event loop alone calls it."""
        self._requests.count[protocol, model, status] += 1
        self._requests.duration[protocol, model].add(seconds)

    def begun(self, waited_seconds: Sequence[float]) -> None:
        """Count a batch that a worker was given, by how long each of its requests had waited. Any thread calls it."""
        self._requests.batch.add(len(waited_seconds))
        for seconds in waited_seconds:
            self._requests.queued.add(seconds)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is asked when somebody looks."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def render(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self._registry)


class _Histogram:
    """How many values there were up to each bound, and their sum.

    prometheus_client's own takes five times as long, and each request has three.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = Lock()

    def add(self, value: float) -> None:
        place = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[place] += 1
            self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        bounds = [*map(str, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), total)


class _Requests(Collector):
    """What is counted of requests, by protocol, model and status."""

    def __init__(self) -> None:
        self.count: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self.duration: defaultdict[tuple[str, str], _Histogram] = defaultdict(partial(_Histogram, _SECONDS))
        self.queued = _Histogram(_SECONDS)
        self.batch = _Histogram(_SIZES)

    def collect(self) -> Iterable[Metric]:
        labels = ("protocol", "model")
        requests = CounterMetricFamily(
            "mlimg_requests", "Requests answered, by HTTP status.", labels=(*labels, "status")
        )
        for (protocol, model, status), count in self.count.items():
            requests.add_metric((protocol, model, str(status)), count)
        duration = HistogramMetricFamily(
            "mlimg_request_duration_seconds", "From a request's head to the end of its answer.", labels=labels
        )
        for names, histogram in self.duration.items():
            histogram.add_to(duration, names)
        queued = HistogramMetricFamily("mlimg_queue_duration_seconds", "How long requests waited for a worker.")
        self.queued.add_to(queued)
        batch = HistogramMetricFamily("mlimg_batch_size", "Requests that were predicted as one.")
        self.batch.add_to(batch)
        return requests, duration, queued, batch


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
