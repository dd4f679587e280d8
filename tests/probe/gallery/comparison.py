"""A mask made by a comparison carries the quantity of interest into the loss.

Seen: the infection rate is not learnable.
Fix: a soft mask, such as `sigmoid((x - threshold) / temperature)`, or a straight-through estimator.
Source: https://github.com/AgentTorch/AgentTorch/issues/32
"""

import torch
from torch import nn

EXPECTED = {"rate": "cut", "deadly": "learns"}


class Epidemic(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))
        self.deadly = nn.Parameter(torch.tensor(0.1))

    def forward(self, contacts):
        infected = (contacts * self.rate > 0.3).float()  # <- rate
        return infected.sum() * self.deadly


def make():
    model, contacts = Epidemic(), torch.linspace(0, 1, 20)
    return model, lambda: (model(contacts) - 3) ** 2, torch.optim.SGD(model.parameters(), lr=1e-3)
