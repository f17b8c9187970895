"""Train a regression on scikit-learn's diabetes data set and save it with skops: a file that runs no code when read.

Writes model/model.skops, and held-out rows with the model's own answers.
"""

from pathlib import Path

import numpy as np
import skops.io
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

HERE = Path(__file__).parent


def main() -> None:
    rows, progression = load_diabetes(return_X_y=True)
    train, held_out, train_progression, held_out_progression = train_test_split(
        rows, progression, test_size=0.2, random_state=0
    )
    model = make_pipeline(StandardScaler(), SVR(C=30))
    model.fit(train, train_progression)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    skops.io.dump(model, folder / "model.skops")
    np.savetxt(HERE / "held-out.csv", held_out, fmt="%.17g", delimiter=",")
    np.savetxt(HERE / "expected.csv", model.predict(held_out), fmt="%.17g")
    explained = model.score(held_out, held_out_progression)
    print(f"model/model.skops: R² {explained:.2f} on {len(held_out)} held-out patients")


if __name__ == "__main__":
    main()
