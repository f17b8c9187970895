"""Several requests, one prediction: who gets what, and what one of them can break."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.exchange import Call, Outcome, Reply, answer
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.metadata import Arrays, ModelMetadata
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.protocols.v2 import V2Codec


class Predict:
    """A handler's `predict`; `sizes` are the rows it was given each time."""

    def __init__(self, predict: Callable[[Arrays], Any] = lambda inputs: inputs) -> None:
        self.sizes: list[int] = []
        self._predict = predict

    def __call__(self, _model: Any, inputs: Arrays) -> Any:
        self.sizes.append(len(next(iter(inputs.values()))))
        return self._predict(inputs)


def call(data: list[Any], datatype: str = "FP64", shape: list[int] | None = None, name: str = "x") -> Call:
    tensor = {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}
    return Call(V2Codec(), json.dumps({"inputs": [tensor]}).encode())


def ask(predict: Predict, *calls: Call) -> list[Outcome]:
    handler = Handler(Path("handler.py"), lambda _folder, _options: None, predict, None, None)
    return answer(LoadedModel(ModelMetadata("digits", "3", "sklearn", (), ()), handler, None), calls)


def data(outcome: Outcome) -> list[Any]:
    assert isinstance(outcome, Reply), outcome
    (output,) = json.loads(outcome.body)["outputs"]
    found: list[Any] = output["data"]
    return found


def test_each_request_of_a_batch_gets_its_own_rows() -> None:
    predict = Predict(lambda inputs: {"y": inputs["x"] * 10})
    outcomes = ask(predict, call([1]), call([2, 3]), call([4, 5, 6]))
    assert [data(outcome) for outcome in outcomes] == [[10], [20, 30], [40, 50, 60]]
    assert predict.sizes == [6]


def test_requests_of_different_kinds_are_batches_of_their_own_in_their_order() -> None:
    predict = Predict()
    calls = [
        call([1.0]),
        call([1], "INT64"),
        call([1, 2], shape=[1, 2]),
        call([2.0]),
        call([9.0], name="z"),
        call([3.0]),
    ]
    outcomes = ask(predict, *calls)
    assert [data(outcome) for outcome in outcomes] == [[1], [1], [1, 2], [2], [9], [3]]
    assert sorted(predict.sizes) == [1, 1, 1, 3]


def test_texts_are_batched_whatever_their_length() -> None:
    predict = Predict()
    outcomes = ask(predict, call(["a"], "BYTES"), call(["a longer one"], "BYTES"))
    assert [data(outcome) for outcome in outcomes] == [["a"], ["a longer one"]]


def test_a_request_that_cannot_be_read_leaves_the_others_their_batch() -> None:
    predict = Predict()
    first, wrong, last = ask(predict, call([1]), Call(V2Codec(), b"{"), call([2]))
    assert (data(first), data(last)) == ([1], [2])
    assert isinstance(wrong, InputError)
    assert predict.sizes == [2]


def refuse_negatives(inputs: Arrays) -> Arrays:
    if (inputs["x"] < 0).any():
        raise InputError("negative")
    return inputs


def fail_on_negatives(inputs: Arrays) -> Arrays:
    if (inputs["x"] < 0).any():
        raise MemoryError
    return inputs


@pytest.mark.parametrize(("predict", "error"), [(refuse_negatives, InputError), (fail_on_negatives, PredictionError)])
def test_what_one_breaks_is_its_own(predict: Callable[[Arrays], Arrays], error: type[Exception]) -> None:
    counted = Predict(predict)
    first, wrong, last = ask(counted, call([1]), call([-1]), call([2]))
    assert (data(first), data(last)) == ([1], [2])
    assert isinstance(wrong, error)
    assert counted.sizes == [3, 1, 1, 1]


def test_a_batch_that_memory_does_not_hold_is_predicted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_arrays: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(np, "concatenate", no_memory)
    predict = Predict()
    assert [data(outcome) for outcome in ask(predict, call([1]), call([2]))] == [[1], [2]]
    assert predict.sizes == [1, 1]


@pytest.mark.parametrize(
    "predict",
    [lambda inputs: {"y": np.sum(inputs["x"])}, lambda inputs: {"y": inputs["x"][:1]}],
    ids=["a number", "one row"],
)
def test_an_output_without_the_rows_of_the_inputs_is_asked_for_one_by_one(predict: Callable[[Arrays], Any]) -> None:
    counted = Predict(predict)
    assert [data(outcome) for outcome in ask(counted, call([1]), call([2]))] == [[1], [2]]
    assert counted.sizes == [2, 1, 1]


def test_tensors_that_disagree_on_their_rows_are_not_batched() -> None:
    tensors = [
        {"name": name, "datatype": "FP64", "shape": [size], "data": [1] * size} for name, size in (("x", 1), ("y", 2))
    ]
    predict = Predict(lambda inputs: {"z": inputs["y"]})
    both = [Call(V2Codec(), json.dumps({"inputs": tensors}).encode())] * 2
    assert [data(outcome) for outcome in ask(predict, *both)] == [[1, 1], [1, 1]]
    assert predict.sizes == [1, 1]


def test_an_output_that_one_selects_is_not_sent_to_another() -> None:
    predict = Predict(lambda inputs: {"x": inputs["x"], "y": -inputs["x"]})
    body = json.loads(call([1]).body)
    chosen = Call(V2Codec(), json.dumps({**body, "outputs": [{"name": "y"}]}).encode())
    unknown = Call(V2Codec(), json.dumps({**body, "outputs": [{"name": "q"}]}).encode())
    one, wrong, all_of_them = ask(predict, chosen, unknown, call([2]))
    assert data(one) == [-1]
    assert isinstance(wrong, InputError)
    assert isinstance(all_of_them, Reply)
    assert [output["name"] for output in json.loads(all_of_them.body)["outputs"]] == ["x", "y"]
