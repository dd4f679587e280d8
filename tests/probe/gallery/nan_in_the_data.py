"""Missing values come as NaN, and the loss leaves out what became NaN.

Seen: the loss is right, and the gradient of the weights is NaN: 0 * NaN.
Fix: replace NaN in the inputs before the model sees them.
Source: https://github.com/pytorch/pytorch/issues/89543
"""

import torch
from torch import nn

EXPECTED = {"weight": "not finite", "bias": "learns"}


def make():
    model, x, y = nn.Linear(4, 1), torch.randn(8, 4), torch.randn(8, 1)
    x[3, 2] = float("nan")

    def loss_fn():
        prediction = model(x)
        seen = ~torch.isnan(prediction)
        return torch.where(seen, prediction - y, 0.0).square().sum() / seen.sum()

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
