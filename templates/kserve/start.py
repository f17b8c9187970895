"""Starts the model server of KServe's SDK with the model that the runtime has brought here and verified."""

import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from kserve import InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput
from kserve.utils.utils import get_predict_input, get_predict_response
from sklearn.exceptions import InconsistentVersionWarning

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server import logs
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.settings import SERVER_DIR


class Estimator(Model):
    """A fitted estimator, asked in KServe's protocols V1 and V2."""

    def __init__(self, name: str, estimator: Any, method: str) -> None:
        super().__init__(name)
        self.estimator = estimator
        self.method = method
        self.columns = [str(column) for column in getattr(estimator, "feature_names_in_", ())]
        self.load()

    def predict(self, payload: dict[str, Any] | InferRequest, *_headers: object) -> dict[str, Any] | InferResponse:
        """One tensor is all rows; several are the columns of a DataFrame."""
        columns = isinstance(payload, InferRequest) and len(payload.inputs) > 1
        try:
            rows = payload.as_dataframe() if columns else get_predict_input(payload, self.columns or None)
            if self.columns and hasattr(rows, "columns"):
                rows = rows[self.columns]  # requests have them in any order
            answer = getattr(self.estimator, self.method)(rows)
        except (KeyError, ValueError) as error:  # so scikit-learn says that rows are not what it was trained on
            raise InvalidInput(f"the model refuses the input: {logs.describe(error)}") from error
        # KServe takes texts as objects alone.
        return get_predict_response(payload, answer.astype(object) if answer.dtype.kind == "U" else answer, self.name)

    def get_input_types(self) -> list[dict[str, Any]]:
        """The columns that the estimator was trained on, by name if they have names."""
        if self.columns:
            return [{"name": column, "datatype": "FP64", "shape": [-1]} for column in self.columns]
        return [{"name": "input-0", "datatype": "FP64", "shape": [-1, getattr(self.estimator, "n_features_in_", -1)]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """What KServe calls the one answer."""
        classes = getattr(self.estimator, "classes_", None)
        if self.method == "predict_proba":
            return [{"name": "output-0", "datatype": "FP64", "shape": [-1, len(classes)]}]
        whole = classes is not None and np.issubdtype(np.asarray(classes).dtype, np.integer)
        text = classes is not None and not np.issubdtype(np.asarray(classes).dtype, np.number)
        return [{"name": "output-0", "datatype": "INT64" if whole else "BYTES" if text else "FP64", "shape": [-1]}]


def load(folder: Path, name: str, method: str) -> Estimator:
    """Load the one estimator in `folder`. Raises ModelError."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in {".joblib", ".pkl", ".pickle"}]
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise ModelError(f"expected one .joblib, .pkl or .pickle file, found {found}", hint="serve a folder with one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InconsistentVersionWarning)
            estimator = joblib.load(files[0])
    except InconsistentVersionWarning as error:
        raise ModelError(
            f"{files[0].name} was saved by scikit-learn {error.original_sklearn_version}, "
            f"the server has {error.current_sklearn_version}",
            hint="write that version in server.requirements",
        ) from error
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise ModelError(f"{files[0].name} cannot be loaded: {logs.describe(error)}") from error
    if not callable(getattr(estimator, method, None)):
        raise ModelError(
            f"{files[0].name} holds {type(estimator).__name__}, which has no {method}",
            hint="server.options.method says what is called",
        )
    return Estimator(name, estimator, method)


def main() -> None:
    """Serve until a signal comes."""
    folder, name, port = sys.argv[1:]
    options = ServerFacts.load(Path(SERVER_DIR)).options
    try:
        model = load(Path(folder), name, options["method"])
    except ModelError as error:
        logs.leave(logs.complain(error))
    ModelServer(http_port=int(port), workers=options["workers"], enable_grpc=False).start([model])


if __name__ == "__main__":
    main()
