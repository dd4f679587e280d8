"""`round` in the forward: torch has a gradient for it, and it is 0 everywhere.

Seen: a scale in front of the rounding does not learn.
Fix: the straight-through estimator, `x + (x.round() - x).detach()`.
Source: https://github.com/apache/mxnet/pull/9040
"""

import torch
from torch import nn

EXPECTED = {"scale": "zero gradient", "shift": "learns"}


class Quantizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.shift = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return torch.round(x * self.scale) + self.shift


def make():
    model, x = Quantizer(), torch.randn(8)
    return model, lambda: (model(x) - x).square().mean(), torch.optim.Adam(model.parameters())
