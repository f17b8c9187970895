"""The model's own code, which MLflow keeps with it as it is: no pickle, so any Python runs it."""

import json
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.models import set_model


class Progression(mlflow.pyfunc.PythonModel):
    """A regression of few numbers, and words for what it says."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Called once, with the files that the model was saved with."""
        self.model = json.loads(Path(context.artifacts["regression"]).read_text(encoding="utf-8"))

    def predict(
        self, context: mlflow.pyfunc.PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """Two columns for each patient."""
        weights = pd.Series(self.model["weights"])
        progression = model_input[weights.index] @ weights + self.model["intercept"]
        level = pd.cut(progression, [float("-inf"), *self.model["limits"], float("inf")], labels=self.model["levels"])
        return pd.DataFrame({"progression": progression, "level": level.astype(str)})


set_model(Progression())
