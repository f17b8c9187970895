"""Handlers of the built-in templates, loaded as a server loads them and asked through its own tensors."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.exchange import Call, Reply, answer
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import import_handler
from mlimg.runtime.server.model import LoadedModel, load_model
from mlimg.runtime.server.protocols.v2 import V2Codec
from mlimg.template import find_template


def load_template(name: str, folder: Path, **options: Any) -> LoadedModel:
    """A model of a built-in template's, loaded from a folder and warmed up."""
    template = find_template(name, Path)
    facts = ServerFacts(name, "1", template.frameworks, template.formats, template.check_options(options))
    prepared = PreparedModel(folder, None, str(folder), 0, 0.0, cache_hit=False)
    with patch.object(sys, "path", [*sys.path]), patch.dict(sys.modules):
        handler = import_handler(template.folder)
        model = load_model(handler, prepared, facts)
        model.warm_up()
    return model


def ask(model: LoadedModel, *tensors: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs of one request."""
    (outcome,) = answer(model, [Call(V2Codec(), json.dumps({"inputs": tensors}).encode())])
    if not isinstance(outcome, Reply):
        raise outcome
    outputs: list[dict[str, Any]] = json.loads(outcome.body)["outputs"]
    return outputs


def rows(values: Any, name: str = "input", datatype: str = "FP64") -> dict[str, Any]:
    """A tensor of a request."""
    array = np.asarray(values)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.tolist()}


def missing(row: np.ndarray) -> dict[str, Any]:
    """A tensor of one row whose NaN are sent as JSON has them, as null."""
    return rows(row) | {"data": [[None if np.isnan(value) else value for value in row[0]]]}


def values(answer: dict[str, Any]) -> np.ndarray:
    """The array of an output."""
    return np.reshape(answer["data"], answer["shape"])


def check_signature_of_classifier(model: LoadedModel, method: str, datatype: str, *, width: int, classes: int) -> None:
    """See that a classifier tells rows of `width` features, and what it answers: a class, or each one's probability."""
    assert [spec.to_json() for spec in model.metadata.inputs] == [
        {"name": "input", "datatype": datatype, "shape": [-1, width]}
    ]
    assert [spec.to_json() for spec in model.metadata.outputs] == [
        {"name": method, "datatype": "INT64", "shape": [-1]}
        if method == "predict"
        else {
            "name": method,
            "datatype": datatype,
            "shape": [-1, classes],
            "parameters": {"classes": list(range(classes))},
        }
    ]


def check_signature_of_columns(model: LoadedModel, datatype: str, names: Sequence[str]) -> None:
    """See that a regressor tells its columns, and one value a row."""
    assert [spec.to_json() for spec in model.metadata.inputs] == [
        {"name": name, "datatype": datatype, "shape": [-1]} for name in names
    ]
    assert [spec.to_json() for spec in model.metadata.outputs] == [
        {"name": "predict", "datatype": datatype, "shape": [-1]}
    ]
