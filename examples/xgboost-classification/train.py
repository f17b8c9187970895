"""Train a classifier of wines on the named columns of the data set that comes with scikit-learn.

Writes model/model.json, and held-out wines with the model's own probabilities.
"""

from pathlib import Path

import numpy as np
import xgboost
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent


def main() -> None:
    frame, cultivars = load_wine(return_X_y=True, as_frame=True)
    train, held_out, train_cultivars, held_out_cultivars = train_test_split(
        frame, cultivars, test_size=0.3, random_state=0, stratify=cultivars
    )
    model = xgboost.XGBClassifier(n_estimators=50, max_depth=3, random_state=0)
    model.fit(train, train_cultivars)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    model.save_model(folder / "model.json")
    held_out.to_csv(HERE / "held-out.csv", index=False)
    np.savetxt(HERE / "expected.csv", model.predict_proba(held_out), fmt="%.9g", delimiter=",")
    right = model.score(held_out, held_out_cultivars)
    print(f"model/model.json: {right:.1%} of {len(held_out)} held-out wines right")


if __name__ == "__main__":
    main()
