"""Train two models on scikit-learn's breast cancer data set, and keep their numbers as parts of one model.

Writes the parts to model/, and held-out tumours with what the two say together to request.json and expected.json.
"""

import json
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
# Of each tumour's cells ten things are measured: their mean, its error, and the mean of the three worst.
GROUPS = ("mean", "error", "worst")


def main() -> None:
    warnings.simplefilter("ignore")  # the network is good enough before it has converged
    data = load_breast_cancer()
    train, held_out, train_labels, truth = train_test_split(data.data, data.target, test_size=0.2, random_state=0)
    scaler = StandardScaler().fit(train)
    rows, asked = scaler.transform(train), scaler.transform(held_out)
    logistic = LogisticRegression().fit(rows, train_labels)
    network = MLPClassifier(hidden_layer_sizes=(16,), random_state=0, max_iter=200).fit(rows, train_labels)

    folder = HERE / "model"
    (folder / "network").mkdir(parents=True, exist_ok=True)
    write(folder / "scaling.json", {"means": list(scaler.mean_), "deviations": list(scaler.scale_)})
    write(folder / "labels.json", list(data.target_names))
    np.savez(folder / "logistic.npz", weights=logistic.coef_[0], intercept=logistic.intercept_[0])
    for number, (weights, offsets) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        np.save(folder / "network" / f"weights-{number}.npy", weights)
        np.save(folder / "network" / f"offsets-{number}.npy", offsets)

    each = np.column_stack([model.predict_proba(asked)[:, 1] for model in (logistic, network)])
    benign = each.mean(axis=1)
    names = data.target_names[(benign > 0.5).astype(int)]
    groups = np.split(held_out, len(GROUPS), axis=1)
    inputs = [tensor(name, "FP64", part) for name, part in zip(GROUPS, groups, strict=True)]
    outputs = [tensor("diagnosis", "BYTES", names), tensor("benign", "FP64", benign), tensor("models", "FP64", each)]
    write(HERE / "request.json", {"inputs": inputs})
    write(HERE / "expected.json", {"outputs": outputs})
    print(f"model/: {(names == data.target_names[truth]).mean():.1%} of {len(truth)} held-out tumours right")


def tensor(name: str, datatype: str, values: np.ndarray) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()}


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
