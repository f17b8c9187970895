"""Train a regression on scikit-learn's diabetes data set, one of whose columns is a category of pandas.

Writes model/model.txt, and held-out patients with the model's own answers.
"""

from pathlib import Path

import lightgbm
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent


def main() -> None:
    frame, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    frame["sex"] = frame["sex"].map({1: "a", 2: "b"}).astype("category")  # the data set does not say which is which
    train, held_out, train_progression, held_out_progression = train_test_split(
        frame, progression, test_size=0.2, random_state=0
    )
    model = lightgbm.LGBMRegressor(n_estimators=60, learning_rate=0.05, random_state=0, verbose=-1)
    model.fit(train, train_progression)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    model.booster_.save_model(folder / "model.txt")
    held_out.to_csv(HERE / "held-out.csv", index=False)
    np.savetxt(HERE / "expected.csv", model.predict(held_out), fmt="%.17g")
    explained = model.score(held_out, held_out_progression)
    print(f"model/model.txt: R² {explained:.2f} on {len(held_out)} held-out patients")


if __name__ == "__main__":
    main()
