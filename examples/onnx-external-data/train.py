"""Train a neural network on handwritten digits with scikit-learn, and write it as ONNX with its weights beside it.

Writes the graph and the weights to model/, and rows it has never seen, with scikit-learn's answers, to held-out.csv and
expected.csv. Training is deterministic.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).parent


def main() -> None:
    pixels, digits = load_digits(return_X_y=True)
    train_pixels, held_out_pixels, train_digits, held_out_digits = train_test_split(
        pixels / 16, digits, test_size=0.2, random_state=0, stratify=digits
    )
    model = MLPClassifier(hidden_layer_sizes=(64,), max_iter=1000, random_state=0)
    model.fit(train_pixels, train_digits)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").unlink(missing_ok=True)  # onnx appends to a file that is there
    onnx.save_model(
        graph(model),
        folder / "digits.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    (folder / "weights.bin").chmod(0o644)  # onnx lets nobody else read it, and the server is another user
    np.savetxt(HERE / "held-out.csv", held_out_pixels, fmt="%g", delimiter=",")
    np.savetxt(HERE / "expected.csv", model.predict_proba(held_out_pixels), fmt="%.17g", delimiter=",")
    right = model.score(held_out_pixels, held_out_digits)
    print(f"model/digits.onnx: {right:.1%} of {len(held_out_digits)} held-out digits right")


def graph(model: MLPClassifier) -> onnx.ModelProto:
    """Two layers and a softmax, as in scikit-learn."""
    weights = {"w1": model.coefs_[0], "b1": model.intercepts_[0], "w2": model.coefs_[1], "b2": model.intercepts_[1]}
    nodes = [
        helper.make_node("Gemm", ["input", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    made = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


if __name__ == "__main__":
    main()
