"""Train a pipeline that begins with a transformer of our own, serve/ratios.py, on scikit-learn's wine data set.

Writes model/model.joblib, and held-out wines with the model's own answers: names of cultivars.
"""

import sys
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
# The server has the files of serve/ on its path, too.
sys.path.insert(0, str(HERE / "serve"))

from ratios import Ratios  # noqa: E402


def main() -> None:
    wine = load_wine(as_frame=True)
    cultivars = wine.target_names[wine.target]
    train, held_out, train_cultivars, held_out_cultivars = train_test_split(
        wine.data, cultivars, test_size=0.3, random_state=0, stratify=cultivars
    )
    ratios = Ratios([("flavanoids", "total_phenols"), ("color_intensity", "hue")])
    model = make_pipeline(ratios, StandardScaler(), LogisticRegression())
    model.fit(train, train_cultivars)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    joblib.dump(model, folder / "model.joblib")
    held_out.to_csv(HERE / "held-out.csv", index=False)
    np.savetxt(HERE / "expected.csv", model.predict(held_out), fmt="%s")
    right = model.score(held_out, held_out_cultivars)
    print(f"model/model.joblib: {right:.1%} of {len(held_out)} held-out wines right")


if __name__ == "__main__":
    main()
