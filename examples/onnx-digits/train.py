"""Train a classifier of handwritten digits with scikit-learn, and convert it to ONNX.

Writes the model to model/, images it has never seen to request.json, and what scikit-learn answers to them to
expected.json. Training is deterministic.
"""

import json
from pathlib import Path

from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
ASKED = 50


def main() -> None:
    pixels, digits = load_digits(return_X_y=True)
    train_pixels, held_out_pixels, train_digits, held_out_digits = train_test_split(
        pixels, digits, test_size=0.2, random_state=0, stratify=digits
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(train_pixels, train_digits)

    converted = to_onnx(model, initial_types=[("pixels", FloatTensorType([None, 64]))], target_opset=21)
    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    (folder / "digits.onnx").write_bytes(converted.SerializeToString())

    asked = held_out_pixels[:ASKED]
    tensor = {"name": "pixels", "datatype": "FP32", "shape": list(asked.shape), "data": asked.ravel().tolist()}
    (HERE / "request.json").write_text(json.dumps({"inputs": [tensor]}))
    labels, probabilities = model.predict(asked), model.predict_proba(asked)
    outputs = [
        {"name": "output_label", "shape": list(labels.shape), "data": labels.tolist()},
        {"name": "output_probability", "shape": list(probabilities.shape), "data": probabilities.ravel().tolist()},
    ]
    (HERE / "expected.json").write_text(json.dumps({"outputs": outputs}))
    right = model.score(held_out_pixels, held_out_digits)
    print(f"model/digits.onnx: {right:.1%} of {len(held_out_digits)} held-out digits right")


if __name__ == "__main__":
    main()
