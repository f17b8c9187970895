"""Train a network that tells wines apart by what a chemist measured, and save it as an exported program.

Writes the model to model/, and rows it has never seen, with the network's own answers, to held-out.csv and
expected.csv.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent


class Network(nn.Module):
    """Scales what was measured, and gives a probability for each of three growers."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.layers = nn.Sequential(nn.Linear(len(mean), 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, measured: torch.Tensor) -> torch.Tensor:
        return self.layers((measured - self.mean) / self.deviation).softmax(dim=1)


def main() -> None:
    torch.manual_seed(0)
    measured, growers = (torch.tensor(values) for values in load_wine(return_X_y=True))
    train, held_out, train_growers, held_out_growers = train_test_split(
        measured.float(), growers, test_size=0.3, random_state=0, stratify=growers
    )
    network = Network(train.mean(dim=0), train.std(dim=0))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(100):
        loss = nn.functional.nll_loss(network(train).log(), train_growers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()

    (HERE / "model").mkdir(exist_ok=True)
    # Without a dynamic shape the program takes as many rows as the example has, no more and no less.
    program = torch.export.export(network, (held_out,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, HERE / "model" / "model.pt2")
    with torch.inference_mode():
        answers = network(held_out)
    np.savetxt(HERE / "held-out.csv", held_out, fmt="%.9g", delimiter=",")
    np.savetxt(HERE / "expected.csv", answers, fmt="%.9g", delimiter=",")
    right = (answers.argmax(dim=1) == held_out_growers).float().mean().item()
    print(f"model/model.pt2: {right:.1%} of {len(held_out)} held-out wines right")


if __name__ == "__main__":
    main()
