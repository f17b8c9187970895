"""Handlers of the built-in templates, loaded as a server loads them and asked through its own tensors."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import import_handler
from mlimg.runtime.server.model import LoadedModel, load_model
from mlimg.runtime.server.protocols.v2 import infer
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
    outputs: list[dict[str, Any]] = json.loads(infer(model, json.dumps({"inputs": tensors}).encode()))["outputs"]
    return outputs


def rows(values: Any, name: str = "input", datatype: str = "FP64") -> dict[str, Any]:
    """A tensor of a request."""
    array = np.asarray(values)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.tolist()}
