"""The same dead layer under AdamW: the gradient is zero, and decay shrinks the weights all the same.

Seen: weights that move, and a layer that learns nothing.
Fix: as for any dead layer; a weight that moves need not learn.
Source: https://cyberinsist.com/blog/debugging-dead-neurons-relu-production-fixes
"""

import torch
from torch import nn

EXPECTED = {"0.*": "moves without gradient", "2.weight": "moves without gradient", "2.bias": "learns"}


def make():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), torch.randn(8, 4)
    nn.init.constant_(model[0].bias, -100.0)
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.AdamW(model.parameters(), lr=0.01)
