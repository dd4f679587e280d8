"""A parameter outside the range it is clamped to.

Seen: the gradient at and beyond the border is 0, so it can never come back.
Fix: a smooth bound, such as `softplus` or `sigmoid`.
Source: https://github.com/pytorch/pytorch/issues/7002
"""

import torch
from torch import nn

EXPECTED = {"log_std": "zero gradient", "mean": "learns"}


class Gaussian(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))
        self.log_std = nn.Parameter(torch.full((2,), 3.0))

    def forward(self, x):
        log_std = self.log_std.clamp(-5, 2)
        return (0.5 * ((x - self.mean) / log_std.exp()) ** 2 + log_std).mean()


def make():
    model, x = Gaussian(), torch.randn(8, 2)
    return model, lambda: model(x), torch.optim.Adam(model.parameters())
