"""A standard deviation over equal values.

Seen: `std` has a NaN gradient where everything is the same.
Fix: `(var + eps).sqrt()`.
Source: https://github.com/pytorch/pytorch/issues/4320
"""

import torch
from torch import nn

EXPECTED = {"*": "not finite"}


def make():
    model, x = nn.Linear(4, 3), torch.ones(8, 4)

    def loss_fn():
        h = model(x)
        return (h.var(0, correction=0).sqrt() - 1).square().sum()

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
