"""The branch that `torch.where` does not take overflows, and its gradient comes through as NaN.

Seen: the loss is finite, the gradient is NaN.
Fix: make the input of the unused branch safe before the function: `exp(where(ok, x, 0))`.
Source: https://github.com/pytorch/pytorch/issues/68425
"""

import torch
from torch import nn

EXPECTED = {"weight": "not finite", "bias": "not finite"}


def make():
    model, x = nn.Linear(1, 1), torch.full((4, 1), 100.0)
    nn.init.ones_(model.weight)

    def loss_fn():
        h = model(x)
        return torch.where(h <= 0, torch.exp(h), 1 + h).mean()

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
