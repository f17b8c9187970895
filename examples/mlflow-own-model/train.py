"""Train a regression on scikit-learn's diabetes data set, and save it as an MLflow model with code of its own.

Writes the model to model/, and held-out patients with what MLflow itself answers to request.json and expected.json.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent
sys.dont_write_bytecode = True  # loading the model would leave bytecode in its folder
DATATYPES = {"float64": "FP64", "int64": "INT64"}


def main() -> None:
    patients, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    patients = patients.astype({"age": "int64", "sex": "int64"})
    train, held_out, truth, _ = train_test_split(patients, progression, test_size=0.2, random_state=0)
    model = Ridge().fit(train, truth)

    with tempfile.TemporaryDirectory() as name:
        regression = Path(name, "regression.json")
        numbers = {
            "weights": dict(zip(patients.columns, model.coef_, strict=True)),
            "intercept": model.intercept_,
            "limits": np.quantile(truth, [1 / 3, 2 / 3]).tolist(),
            "levels": ["slow", "middling", "fast"],
        }
        regression.write_text(json.dumps(numbers), encoding="utf-8")
        shutil.rmtree(HERE / "model", ignore_errors=True)
        mlflow.pyfunc.save_model(
            HERE / "model",
            python_model=HERE / "model_code.py",
            artifacts={"regression": str(regression)},
            signature=infer_signature(train, pd.DataFrame({"progression": [1.0], "level": ["slow"]})),
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"pandas=={pd.__version__}"],
        )

    answers = mlflow.pyfunc.load_model(str(HERE / "model")).predict(held_out)
    inputs = [tensor(name, DATATYPES[str(held_out[name].dtype)], held_out[name]) for name in held_out]
    outputs = [tensor("progression", "FP64", answers["progression"]), tensor("level", "BYTES", answers["level"])]
    (HERE / "request.json").write_text(json.dumps({"inputs": inputs}) + "\n", encoding="utf-8")
    (HERE / "expected.json").write_text(json.dumps({"outputs": outputs}) + "\n", encoding="utf-8")
    print(f"model/: {len(answers)} held-out patients, {(answers['level'] == 'fast').sum()} of them fast")


def tensor(name: str, datatype: str, values: pd.Series) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": values.tolist()}


if __name__ == "__main__":
    main()
