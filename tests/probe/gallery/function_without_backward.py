"""A custom autograd Function returns None for an input that should learn.

Seen: the weights behind it are never updated and no error says why.
Fix: return the gradient of every input that learns.
Source: https://github.com/pytorch/pytorch/pull/41490
"""

import torch
from torch import nn

EXPECTED = {"before.*": "cut", "after.*": "learns"}


class Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return None


def make():
    model = nn.ModuleDict({"before": nn.Linear(4, 4), "after": nn.Linear(4, 1)})
    x = torch.randn(8, 4)

    def loss_fn():
        h = Quantize.apply(model["before"](x))  # <- before.*
        return model["after"](h).square().mean()

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
