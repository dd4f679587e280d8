"""A masked mean in which one row has an empty mask: 0 / 0.

Seen: the loss becomes NaN for some batches.
Fix: `mask.sum(...).clamp(min=1)`.
Source: https://github.com/Zhen-Dong/Magic-Me/issues/14
"""

import torch
from torch import nn

EXPECTED = {"*": "not finite"}


def make():
    model, x = nn.Linear(4, 1), torch.randn(3, 5, 4)
    mask = torch.ones(3, 5)
    mask[1] = 0

    def loss_fn():
        error = model(x).squeeze(-1).square() * mask
        return (error.sum(1) / mask.sum(1)).mean()

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
