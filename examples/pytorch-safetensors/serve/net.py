"""The network: training and the server make the same one."""

import torch
from torch import nn


class Network(nn.Module):
    """How far diabetes will have gone on a year from now, from ten features of a patient."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.first(features))
        hidden = hidden + torch.relu(self.second(hidden))
        return {"progression": self.last(hidden).squeeze(1)}
