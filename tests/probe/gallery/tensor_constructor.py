"""`torch.Tensor([p])` around a parameter drops its gradient, `torch.Tensor(p)` does not.

Seen: `requires_grad` is silently False after the call.
Fix: `torch.stack([p])`.
Source: https://github.com/pytorch/pytorch/issues/61410
"""

import torch
from torch import nn

EXPECTED = {"scale": "cut", "shift": "learns"}


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        scale = torch.Tensor([self.scale])  # <- scale
        return scale * x + self.shift


def make():
    model, x = Affine(), torch.randn(8)
    return model, lambda: (model(x) - 3 * x - 1).square().mean(), torch.optim.SGD(model.parameters(), lr=0.1)
