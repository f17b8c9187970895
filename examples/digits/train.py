"""Train a classifier of handwritten digits on the data set that comes with scikit-learn.

Writes the model to model/, and rows it has never seen, with the model's own answers, to held-out.csv and
expected.csv. Training is deterministic: the same scikit-learn gives the same bytes.
"""

from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent


def main() -> None:
    pixels, digits = load_digits(return_X_y=True)
    train_pixels, held_out_pixels, train_digits, held_out_digits = train_test_split(
        pixels, digits, test_size=0.2, random_state=0, stratify=digits
    )
    model = RandomForestClassifier(n_estimators=100, random_state=0)
    model.fit(train_pixels, train_digits)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    joblib.dump(model, folder / "model.joblib")
    np.savetxt(HERE / "held-out.csv", held_out_pixels, fmt="%g", delimiter=",")
    np.savetxt(HERE / "expected.csv", model.predict_proba(held_out_pixels), fmt="%.17g", delimiter=",")
    right = model.score(held_out_pixels, held_out_digits)
    print(f"model/model.joblib: {right:.1%} of {len(held_out_digits)} held-out digits right")


if __name__ == "__main__":
    main()
