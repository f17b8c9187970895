"""Train a classifier of tumours on the data set that comes with scikit-learn.

Writes the model to model/, a request with tumours it has never seen to request.json, and the model's own answers to
expected.json. Training is deterministic: the same scikit-learn gives the same bytes.
"""

import json
from pathlib import Path

import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent


def main() -> None:
    measures, kinds = load_breast_cancer(return_X_y=True)
    train_measures, held_out, train_kinds, held_out_kinds = train_test_split(
        measures, kinds, test_size=0.1, random_state=0, stratify=kinds
    )
    model = GradientBoostingClassifier(n_estimators=50, random_state=0)
    model.fit(train_measures, train_kinds)

    (HERE / "model").mkdir(exist_ok=True)
    joblib.dump(model, HERE / "model" / "model.joblib")
    rows = {"name": "input-0", "datatype": "FP64", "shape": list(held_out.shape), "data": held_out.tolist()}
    answer = model.predict_proba(held_out)
    output = {"name": "output-0", "shape": answer.shape, "data": answer.ravel().tolist()}
    (HERE / "request.json").write_text(json.dumps({"inputs": [rows]}))
    (HERE / "expected.json").write_text(json.dumps({"outputs": [output]}))
    right = model.score(held_out, held_out_kinds)
    print(f"model/model.joblib: {right:.1%} of {len(held_out)} held-out tumours right")


if __name__ == "__main__":
    main()
