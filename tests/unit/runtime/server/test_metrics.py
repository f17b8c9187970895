"""What Prometheus reads, read by its own parser."""

from prometheus_client.parser import text_string_to_metric_families

from mlimg.runtime.server.metrics import Metrics
from mlimg.runtime.server.state import State
from tests.unit.runtime.server.conftest import INFER, MakeServer, Server, tensor

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
V2 = {"protocol": "v2", "model": "digits"}


def samples(server: Server) -> Samples:
    """Every sample by its name and its labels."""
    answer = server.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(answer.text)


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_requests_are_counted_by_protocol_model_and_status(make_server: MakeServer) -> None:
    server = make_server()
    for _ in range(3):
        assert server.post({"inputs": [tensor()]}).status == 200
    assert server.post(b"{", INFER).status == 400
    found = samples(server)
    assert value(found, "mlimg_requests_total", **V2, status="200") == 3
    assert value(found, "mlimg_requests_total", **V2, status="400") == 1
    assert value(found, "mlimg_request_duration_seconds_count", **V2) == 4
    assert value(found, "mlimg_queue_duration_seconds_count") == 4
    assert value(found, "mlimg_batch_size_sum") == 4
    assert value(found, "mlimg_requests_in_progress") == 0


def test_a_value_on_a_bound_is_within_it() -> None:
    metrics = Metrics(State())
    metrics.begun([0.0025, 0.0026, 31])
    found = parsed(metrics.render().decode())
    counts = [value(found, "mlimg_queue_duration_seconds_bucket", le=le) for le in ("0.001", "0.0025", "30.0", "+Inf")]
    assert counts == [0, 1, 2, 3]
    assert value(found, "mlimg_queue_duration_seconds_sum") == 0.0025 + 0.0026 + 31
    assert value(found, "mlimg_batch_size_bucket", le="4.0") == 1


def test_what_a_client_makes_up_is_no_label(make_server: MakeServer) -> None:
    server = make_server()
    for number in range(5):
        assert server.post(b"{}", f"/v2/models/made-up-{number}/infer").status == 404
    found = samples(server)
    assert value(found, "mlimg_requests_total", protocol="other", model="", status="404") == 5
    assert "made-up" not in str(found)


def test_the_models_are_told_as_they_are(make_server: MakeServer) -> None:
    server = make_server(workers=3, queue=4)
    found = samples(server)
    labels = {"model": "digits", "version": "3"}
    assert value(found, "mlimg_ready") == value(found, "mlimg_model_ready", **labels) == 1
    assert value(found, "mlimg_model_start_seconds", **labels) >= 0
    assert value(found, "mlimg_queue_capacity") == 7
    server.state.models = ()
    assert value(samples(server), "mlimg_ready") == 0
    assert "digits" not in str(samples(server))
