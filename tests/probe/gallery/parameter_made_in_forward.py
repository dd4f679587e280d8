"""A forward puts evolved weights back with `nn.Parameter(...)`, a new leaf at every step.

Seen: the network that evolves the weights gets no gradient.
Fix: pass the weight on as an argument, or `torch.func.functional_call`.
Source: https://github.com/benedekrozemberczki/pytorch_geometric_temporal/issues/80
"""

import torch
from torch import nn

EXPECTED = {"evolve.*": "cut", "first": "cut", "bias": "learns"}


class Evolve(nn.Module):
    def __init__(self):
        super().__init__()
        self.evolve = nn.GRUCell(3, 3)
        self.first = nn.Parameter(torch.randn(2, 3))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        weight = self.evolve(self.first, self.first)
        weight = nn.Parameter(weight)  # <- evolve.* <- first
        return x @ weight.t() + self.bias


def make():
    model, x = Evolve(), torch.randn(8, 3)
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.Adam(model.parameters())
