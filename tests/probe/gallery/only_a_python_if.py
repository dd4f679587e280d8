"""A learned gate decides in a Python `if`, and its value enters nothing.

Seen: with stochastic depth some layers get no gradient; with a learned gate in an `if`, the gate never does.
Fix: multiply by the gate: `h + gate * block(h)`.
Source: https://github.com/pytorch/pytorch/issues/90171
"""

import torch
from torch import nn

EXPECTED = {"gate": "unused", "block.*": "learns", "out.*": "learns"}


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(1.0))
        self.block = nn.Linear(4, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        if self.gate > 0:
            x = x + self.block(x)
        return self.out(x)


def make():
    model, x = Skip(), torch.randn(8, 4)
    return model, lambda: model(x).square().mean(), torch.optim.Adam(model.parameters())
