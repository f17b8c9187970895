"""Train a classifier of tumours on the named columns of the data set that comes with scikit-learn.

Writes model/model.joblib, and held-out rows with the model's own answers.
"""

from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent


def main() -> None:
    frame, benign = load_breast_cancer(return_X_y=True, as_frame=True)
    train, held_out, train_benign, held_out_benign = train_test_split(
        frame, benign, test_size=0.2, random_state=0, stratify=benign
    )
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(train, train_benign)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    joblib.dump(model, folder / "model.joblib")
    held_out.to_csv(HERE / "held-out.csv", index=False)
    np.savetxt(HERE / "expected.csv", model.predict_proba(held_out), fmt="%.17g", delimiter=",")
    right = model.score(held_out, held_out_benign)
    print(f"model/model.joblib: {right:.1%} of {len(held_out)} held-out tumours right")


if __name__ == "__main__":
    main()
