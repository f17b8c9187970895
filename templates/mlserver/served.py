"""MLServer's own runtime for the model's framework, which also tells what the model takes, and refuses a bad one."""

import multiprocessing
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from mlserver.types import MetadataTensor

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server import logs
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.settings import SERVER_DIR

OPTIONS = ServerFacts.load(Path(SERVER_DIR)).options
CLASSES = {
    "sklearn": ("mlserver_sklearn", "SKLearnModel"),
    "xgboost": ("mlserver_xgboost", "XGBoostModel"),
    "lightgbm": ("mlserver_lightgbm", "LightGBMModel"),
}
package, name = CLASSES[OPTIONS["runtime"]]
Runtime: Any = getattr(import_module(package), name)


class Served(Runtime):
    """The runtime that the options name."""

    async def load(self) -> bool:
        """Load the model; one that cannot be loaded ends the server in one line, with status 12."""
        try:
            loaded: bool = await super().load()
            self.inputs, self.outputs = _inputs(self._model), _outputs(self._model)
        except Exception as error:  # a damaged model raises whatever it likes
            if multiprocessing.parent_process() is not None:  # a worker: MLServer would start another, for ever
                raise
            what = ModelError(f"MLServer cannot load the model: {logs.describe(error)}")
            logs.leave(logs.complain(what))
        return loaded


def _inputs(model: Any) -> list[MetadataTensor]:
    """One tensor of all features, which is what MLServer makes rows of unless a request says otherwise."""
    width = model.num_feature() if OPTIONS["runtime"] == "lightgbm" else getattr(model, "n_features_in_", None)
    return [MetadataTensor(name="input", datatype="FP64", shape=[-1, int(width)])] if width else []


def _outputs(model: Any) -> list[MetadataTensor]:
    """What an estimator of scikit-learn answers; the other runtimes have `predict` alone, of whatever it gives."""
    classes = getattr(model, "classes_", None)
    if OPTIONS["runtime"] != "sklearn" or not isinstance(classes, np.ndarray):
        return []
    if OPTIONS["method"] == "predict_proba":
        return [MetadataTensor(name="predict_proba", datatype="FP64", shape=[-1, len(classes)])]
    datatype = {"i": "INT64", "u": "INT64", "b": "BOOL", "f": "FP64"}.get(classes.dtype.kind, "BYTES")
    return [MetadataTensor(name="predict", datatype=datatype, shape=[-1, 1])] if OPTIONS["method"] == "predict" else []
