"""What tritonclient makes of a server over gRPC: run with it in an environment of its own.

Arguments: the address of gRPC, the server's process id, which it sends SIGTERM in the end.
"""

import os
import signal
import sys
import threading
import time

import ml_dtypes
import numpy as np
from tritonclient import grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mlimg.runtime.server.grpc_v2.messages import MESSAGES
from tests.support.triton_http import ARRAYS

MODEL = "echo"
METHODS = [
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
]
SLOW_SECONDS = 1.5


def check_messages():
    """Each field of ours is one of theirs, of the same number and type, and the other way round."""
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    seen = set()

    def check(ours, theirs):
        if theirs.full_name in seen:
            return
        seen.add(theirs.full_name)
        assert ours.GetOptions().map_entry == theirs.GetOptions().map_entry, theirs.full_name
        assert [described(field) for field in ours.fields] == [described(field) for field in theirs.fields]
        for mine, other in zip(ours.fields, theirs.fields, strict=True):
            if other.message_type:
                check(mine.message_type, other.message_type)

    for method in METHODS:
        found = service.methods_by_name[method]
        check(MESSAGES[f"{method}Request"].DESCRIPTOR, found.input_type)
        check(MESSAGES[f"{method}Response"].DESCRIPTOR, found.output_type)
    assert len(seen) > 25


def described(field):
    return field.number, field.name, field.type, field.is_repeated


def tensor(name, array):
    return grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)


def check_answers(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL, "3")
    metadata = client.get_model_metadata(MODEL)
    assert list(metadata.versions) == ["3"]
    assert {spec.name: (spec.datatype, list(spec.shape)) for spec in metadata.inputs} == {
        name: (name, [-1, 2]) for name in ARRAYS
    }
    (entry,) = client.get_model_repository_index().models
    assert (entry.name, entry.version, entry.state, entry.reason) == (MODEL, "3", "READY", "")
    inputs = [tensor(name, array) for name, array in ARRAYS.items()]
    outputs = [grpc.InferRequestedOutput(name) for name in ARRAYS]
    for how in (None, "gzip", "deflate"):
        result = client.infer(MODEL, inputs, outputs=outputs, request_id=f"{how}", compression_algorithm=how)
        told = result.get_response()
        assert (told.id, told.model_name, told.model_version) == (f"{how}", MODEL, "3")
        for name, array in ARRAYS.items():
            got = result.as_numpy(name)
            got = got.astype(ml_dtypes.bfloat16) if name == "BF16" else got
            np.testing.assert_array_equal(got, array, name)
    only = client.infer(MODEL, inputs, outputs=[grpc.InferRequestedOutput("FP16")]).get_response()
    assert [output.name for output in only.outputs] == ["FP16"]


def status(call):
    """The status of a request that is refused, and what it says; OK for one that is not."""
    try:
        call()
    except InferenceServerException as error:
        return error.status(), error.message()
    return "OK", ""


def check_refusals(client):
    def infer(array, model=MODEL, datatype="FP64", **options):
        one = tensor("FP64", array)
        one._input.datatype = datatype  # what the client would not let pass
        return status(lambda: client.infer(model, [one], **options))

    good, large = np.zeros((1, 2)), np.zeros((2**18, 2))  # 4 MiB, of which the server takes 2
    assert infer(good)[0] == "OK"
    assert infer(np.zeros((1, 3)))[0] == "StatusCode.INVALID_ARGUMENT"
    assert infer(good, datatype="FP65")[0] == "StatusCode.INVALID_ARGUMENT"
    assert infer(good, model_version="4")[0] == "StatusCode.NOT_FOUND"
    assert infer(good, model="other")[0] == "StatusCode.NOT_FOUND"
    assert infer(large)[0] == "StatusCode.RESOURCE_EXHAUSTED"
    assert infer(large, compression_algorithm="gzip")[0] == "StatusCode.RESOURCE_EXHAUSTED"
    code, text = infer(np.full((1, 2), -1.0))
    assert code == "StatusCode.INTERNAL"
    assert "secret" not in text
    assert (
        "request my-id"
        in status(
            lambda: client.infer(MODEL, [tensor("FP64", np.full((1, 2), -1.0))], headers={"x-request-id": "my-id"})
        )[1]
    )
    assert status(lambda: client.load_model(MODEL))[0] == "StatusCode.UNIMPLEMENTED"
    assert infer(good)[0] == "OK"


class Answers:
    """What requests that were sent at once come to."""

    def __init__(self, client):
        self._client = client
        self._some = threading.Condition()
        self.found = []

    def send(self):
        slow = [tensor("FP64", np.full((1, 2), SLOW_SECONDS))]
        return self._client.async_infer(MODEL, slow, callback=self._take)

    def _take(self, result, error):
        with self._some:
            self.found.append("OK" if error is None else error.status())
            self._some.notify_all()

    def wait(self, count):
        with self._some:
            assert self._some.wait_for(lambda: len(self.found) >= count, timeout=60), self.found


def check_places(client):
    """The server has one worker and a queue of two: a fourth is refused, until one that waits is cancelled."""
    answers = Answers(client)
    sent = []
    for _ in range(3):
        sent.append(answers.send())
        time.sleep(0.1)  # so that the first is the one at work
    answers.send()
    answers.wait(1)
    assert answers.found == ["StatusCode.UNAVAILABLE"]
    sent[2].cancel()
    answers.wait(2)
    time.sleep(0.1)
    answers.send()
    answers.wait(5)
    assert sorted(answers.found) == ["OK", "OK", "OK", "StatusCode.CANCELLED", "StatusCode.UNAVAILABLE"]
    assert status(lambda: client.infer(MODEL, [tensor("FP64", np.full((1, 2), 3.0))], client_timeout=0.3))[0] == (
        "StatusCode.DEADLINE_EXCEEDED"
    )
    while status(lambda: client.infer(MODEL, [tensor("FP64", np.zeros((1, 2)))]))[0] != "OK":
        time.sleep(0.1)


def check_drain(client, process):
    """What was taken on is answered; what comes later is refused by name."""
    answers = Answers(client)
    for _ in range(3):
        answers.send()
    time.sleep(0.3)
    os.kill(process, signal.SIGTERM)
    time.sleep(0.3)
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert status(lambda: client.infer(MODEL, [tensor("FP64", np.zeros((1, 2)))]))[0] == "StatusCode.UNAVAILABLE"
    answers.wait(3)
    assert answers.found == ["OK"] * 3


if __name__ == "__main__":
    check_messages()
    with grpc.InferenceServerClient(sys.argv[1]) as server:
        check_answers(server)
        check_refusals(server)
        check_places(server)
        check_drain(server, int(sys.argv[2]))
