"""Train a regression on scikit-learn's diabetes data set, with early stopping, and save it as UBJSON.

Writes model/model.ubj, and held-out rows with the model's own answers.
"""

from pathlib import Path

import numpy as np
import xgboost
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent


def main() -> None:
    rows, progression = load_diabetes(return_X_y=True)
    rest, held_out, rest_progression, held_out_progression = train_test_split(
        rows, progression, test_size=0.2, random_state=0
    )
    train, watched, train_progression, watched_progression = train_test_split(
        rest, rest_progression, test_size=0.2, random_state=0
    )
    model = xgboost.XGBRegressor(max_depth=3, learning_rate=0.1, early_stopping_rounds=20, random_state=0)
    model.fit(train, train_progression, eval_set=[(watched, watched_progression)], verbose=False)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    model.save_model(folder / "model.ubj")
    np.savetxt(HERE / "held-out.csv", held_out, fmt="%.17g", delimiter=",")
    answers = model.predict(held_out)  # of the best trees, not of all
    np.savetxt(HERE / "expected.csv", answers, fmt="%.9g")
    explained = r2_score(held_out_progression, answers)
    print(f"model/model.ubj: R² {explained:.2f} on {len(held_out)} held-out patients")


if __name__ == "__main__":
    main()
