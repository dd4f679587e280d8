"""Forces are the derivative of a learned energy, and are trained on without a graph of that derivative.

Seen: training on forces changes nothing in the potential.
Fix: `create_graph=True` while training.
Source: https://github.com/aiqm/torchani/pull/238
"""

import torch
from torch import nn
from torch.func import functional_call, grad

EXPECTED = {"potential.*": "cut", "scale": "learns"}


class Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.potential = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, positions):
        fixed = {name: weight.detach() for name, weight in self.potential.named_parameters()}  # <- potential.*
        energy = grad(lambda here: functional_call(self.potential, fixed, here).sum())
        return -self.scale * energy(positions)


def make():
    model, positions, wanted = Forces(), torch.randn(5, 3), torch.randn(5, 3)
    return model, lambda: (model(positions) - wanted).square().mean(), torch.optim.Adam(model.parameters())
