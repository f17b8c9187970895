"""Train a small convolutional network that reads handwritten digits, and save it as TorchScript.

Writes the model to model/, and a request with digits it has never seen, with the network's own answers, to
request.json and expected.json.
"""

import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
ASKED = 32


class Network(nn.Module):
    """Two convolutions, and a probability for each of the ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels).softmax(dim=1)


def main() -> None:
    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    train, held_out, train_digits, held_out_digits = train_test_split(
        pixels, torch.tensor(digits), test_size=0.2, random_state=0, stratify=digits
    )
    network = Network()
    fit(network, train, train_digits)
    network.eval()

    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    torch.jit.save(torch.jit.script(network), folder / "model.pt")
    # TorchScript does not say what shapes it takes.
    signature = {
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}],
    }
    (folder / "signature.json").write_text(json.dumps(signature, indent=1) + "\n")
    with torch.inference_mode():
        answers = network(held_out)
    asked = {"datatype": "FP32", **tensor("pixels", held_out[:ASKED])}
    (HERE / "request.json").write_text(json.dumps({"inputs": [asked]}))
    (HERE / "expected.json").write_text(json.dumps({"outputs": [tensor("output", answers[:ASKED])]}))
    right = (answers.argmax(dim=1) == held_out_digits).float().mean().item()
    print(f"model/model.pt: {right:.1%} of {len(held_out)} held-out digits right")


def fit(network: Network, pixels: torch.Tensor, digits: torch.Tensor) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(pixels)).split(64):
            loss = nn.functional.nll_loss(network(pixels[batch]).log(), digits[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def tensor(name: str, values: torch.Tensor) -> dict[str, object]:
    return {"name": name, "shape": list(values.shape), "data": values.flatten().tolist()}


if __name__ == "__main__":
    main()
