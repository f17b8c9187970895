"""Train a network on the diabetes data set that comes with scikit-learn, and save its weights as safetensors.

Writes the weights, and what the network is made with, to model/, and rows it has never seen, with the network's own
answers, to held-out.csv and expected.csv.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "serve"))
from net import Network  # noqa: E402 (it lies where the server finds it)

ARGUMENTS = {"features": 10, "width": 32}


def main() -> None:
    torch.manual_seed(0)
    features, progression = (torch.tensor(values).float() for values in load_diabetes(return_X_y=True))
    train, held_out, train_values, held_out_values = train_test_split(
        features, progression, test_size=0.2, random_state=0
    )
    network = Network(**ARGUMENTS)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(300):
        loss = nn.functional.mse_loss(network(train)["progression"], train_values)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "arguments.json").write_text(json.dumps(ARGUMENTS) + "\n")
    # Weights do not say what shapes they take.
    signature = {
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, ARGUMENTS["features"]]}],
        "outputs": [{"name": "progression", "datatype": "FP32", "shape": [-1]}],
    }
    (folder / "signature.json").write_text(json.dumps(signature, indent=1) + "\n")
    with torch.inference_mode():
        answers = network(held_out)["progression"]
    np.savetxt(HERE / "held-out.csv", held_out, fmt="%.9g", delimiter=",")
    np.savetxt(HERE / "expected.csv", answers, fmt="%.9g")
    error = (answers - held_out_values).abs().mean().item()
    print(f"model/model.safetensors: off by {error:.0f} on average, on {len(held_out)} held-out patients")


if __name__ == "__main__":
    main()
