"""Every unit of a ReLU layer is negative for every input.

Seen: gradients of exactly zero before the layer, forever.
Fix: a smaller step before it happens; LeakyReLU or GELU; a better initialisation.
Source: https://www.codegenes.net/blog/pytorch-dead-relu
"""

import torch
from torch import nn

EXPECTED = {"0.*": "zero gradient", "2.weight": "zero gradient", "2.bias": "learns"}


def make():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), torch.randn(8, 4)
    nn.init.constant_(model[0].bias, -100.0)
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.SGD(model.parameters(), lr=0.1)
