"""Train two classifiers on data sets that come with scikit-learn: handwritten digits, and wines by named columns.

Writes model/digits and model/wine, and for each held-out rows with the model's own answers.
"""

from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent


def main() -> None:
    for name, load in {"digits": load_digits, "wine": load_wine}.items():
        table, classes = load(return_X_y=True, as_frame=True)
        train, held_out, train_classes, right = train_test_split(table, classes, test_size=0.2, random_state=0)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        model.fit(train, train_classes)

        folder = HERE / "model" / name
        folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(model, folder / "model.joblib")
        held_out.to_csv(HERE / f"held-out-{name}.csv", index=False)
        np.savetxt(HERE / f"expected-{name}.csv", model.predict(held_out), fmt="%d")
        print(f"model/{name}: {model.score(held_out, right):.1%} of {len(held_out)} held-out rows right")


if __name__ == "__main__":
    main()
