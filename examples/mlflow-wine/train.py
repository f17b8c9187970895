"""Train a classifier on scikit-learn's wine data set, and log it with MLflow as a training job does.

Writes the logged model to model/, and held-out wines with what MLflow itself answers to held-out.csv and expected.csv.
"""

import os
import shutil
import tempfile
from pathlib import Path

# A store of files needs no database, and MLflow 3 wants to be told that one is meant.
os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}

import mlflow
import mlflow.sklearn
import numpy as np
from mlflow.models import infer_signature
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent


def main() -> None:
    wines, cultivars = load_wine(return_X_y=True, as_frame=True)
    train_wines, held_out, train_cultivars, truth = train_test_split(wines, cultivars, test_size=0.25, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(train_wines, train_cultivars)

    with tempfile.TemporaryDirectory() as store:
        mlflow.set_tracking_uri(f"file://{store}/runs")
        with mlflow.start_run():
            logged = mlflow.sklearn.log_model(
                model,
                name="wine",
                signature=infer_signature(train_wines, model.predict_proba(train_wines)),
                input_example=train_wines.head(2),
                pyfunc_predict_fn="predict_proba",
            )
        shutil.rmtree(HERE / "model", ignore_errors=True)
        mlflow.artifacts.download_artifacts(logged.model_uri, dst_path=str(HERE / "model"))

    answers = mlflow.pyfunc.load_model(str(HERE / "model")).predict(held_out)
    held_out.to_csv(HERE / "held-out.csv", index=False)
    np.savetxt(HERE / "expected.csv", answers, fmt="%.17g", delimiter=",")
    right = (answers.argmax(axis=1) == truth).mean()
    print(f"model/: {right:.1%} of {len(held_out)} held-out wines right")


if __name__ == "__main__":
    main()
