"""Train a small neural network on handwritten digits with Keras.

Writes the model to model/, and rows it has never seen, with Keras' own answers, to held-out.csv and expected.csv.
Training is deterministic.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent


def main() -> None:
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    pixels, digits = load_digits(return_X_y=True)
    train_pixels, held_out_pixels, train_digits, held_out_digits = train_test_split(
        pixels, digits, test_size=0.2, random_state=0, stratify=digits
    )
    given = keras.Input((64,), name="input")
    hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Rescaling(1 / 16)(given))
    probabilities = keras.layers.Dense(10, activation="softmax", name="probabilities")(hidden)
    model = keras.Model(given, probabilities)
    model.compile(optimizer=keras.optimizers.Adam(0.005), loss="sparse_categorical_crossentropy")
    model.fit(train_pixels, train_digits, epochs=20, batch_size=64, verbose=0)

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    model.save(folder / "digits.keras")
    answers = model.predict(held_out_pixels, verbose=0)
    np.savetxt(HERE / "held-out.csv", held_out_pixels, fmt="%g", delimiter=",")
    np.savetxt(HERE / "expected.csv", answers, fmt="%.9g", delimiter=",")
    right = float(np.mean(answers.argmax(axis=1) == held_out_digits))
    print(f"model/digits.keras: {right:.1%} of {len(held_out_digits)} held-out digits right")


if __name__ == "__main__":
    main()
