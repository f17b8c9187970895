"""Train a classifier of wines on the data set that comes with scikit-learn.

Writes the model to model/, a request with wines it has never seen to request.json, and the model's own answers to
expected.json. Training is deterministic: the same scikit-learn gives the same bytes.
"""

import json
from pathlib import Path

import joblib
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent


def main() -> None:
    measures, growers = load_wine(return_X_y=True)
    train_measures, held_out, train_growers, held_out_growers = train_test_split(
        measures, growers, test_size=0.2, random_state=0, stratify=growers
    )
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(train_measures, train_growers)

    (HERE / "model").mkdir(exist_ok=True)
    joblib.dump(model, HERE / "model" / "model.joblib")
    rows = {"name": "measures", "datatype": "FP64", "shape": list(held_out.shape), "data": held_out.tolist()}
    answers = {name: getattr(model, name)(held_out) for name in ("predict", "predict_proba")}
    request = {"inputs": [rows], "outputs": [{"name": name} for name in answers]}
    outputs = [{"name": name, "shape": a.shape, "data": a.ravel().tolist()} for name, a in answers.items()]
    (HERE / "request.json").write_text(json.dumps(request))
    (HERE / "expected.json").write_text(json.dumps({"outputs": outputs}))
    right = model.score(held_out, held_out_growers)
    print(f"model/model.joblib: {right:.1%} of {len(held_out)} held-out wines right")


if __name__ == "__main__":
    main()
