"""Train a regression on scikit-learn's diabetes data set and keep only its numbers: no pickle, no scikit-learn.

Writes model/coefficients.npz and model/columns.json, and held-out rows with the model's own answers.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent


def main() -> None:
    data = load_diabetes()
    train_rows, held_out_rows, train_progression, held_out_progression = train_test_split(
        data.data, data.target, test_size=0.2, random_state=0
    )
    model = Ridge(alpha=0.1)
    model.fit(train_rows, train_progression)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    np.savez(folder / "coefficients.npz", weights=model.coef_, intercept=model.intercept_)
    (folder / "columns.json").write_text(json.dumps(data.feature_names) + "\n", encoding="utf-8")
    header = ",".join(data.feature_names)
    np.savetxt(HERE / "held-out.csv", held_out_rows, fmt="%.17g", delimiter=",", header=header, comments="")
    np.savetxt(HERE / "expected.csv", model.predict(held_out_rows), fmt="%.17g")
    explained = model.score(held_out_rows, held_out_progression)
    print(f"model/: R² {explained:.2f} on {len(held_out_rows)} held-out patients")


if __name__ == "__main__":
    main()
