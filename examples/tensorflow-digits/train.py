"""Train a small convolutional network on handwritten digits, and save it as a SavedModel.

Writes the model to model/, images it has never seen to request.json, and what TensorFlow answers to them to
expected.json. Training is deterministic.
"""

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent
ASKED = 20


def main() -> None:
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype(np.float32)
    train_images, held_out_images, train_digits, held_out_digits = train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.005), loss="sparse_categorical_crossentropy")
    model.fit(train_images, train_digits, epochs=10, batch_size=64, verbose=0)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")])
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = model(image, training=False)
        return {"digit": tf.argmax(probabilities, axis=1), "probabilities": probabilities}

    tf.saved_model.save(model, str(HERE / "model"), signatures=serve)
    asked = held_out_images[:ASKED]
    tensor = {"name": "image", "datatype": "FP32", "shape": list(asked.shape), "data": asked.ravel().tolist()}
    (HERE / "request.json").write_text(json.dumps({"inputs": [tensor]}))
    outputs = [
        {"name": name, "shape": list(value.shape), "data": value.numpy().ravel().tolist()}
        for name, value in serve(asked).items()
    ]
    (HERE / "expected.json").write_text(json.dumps({"outputs": outputs}))
    right = float(np.mean(serve(held_out_images)["digit"].numpy() == held_out_digits))
    print(f"model/saved_model.pb: {right:.1%} of {len(held_out_digits)} held-out digits right")


if __name__ == "__main__":
    main()
