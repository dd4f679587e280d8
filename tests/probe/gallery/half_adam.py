"""Adam on half-precision weights: epsilon 1e-8 is 0 in float16, and so are squares of small gradients.

Seen: loss and gradients are fine, the weights are NaN after one step.
Fix: float32 weights, or eps=1e-4.
Source: https://github.com/pytorch/pytorch/issues/8860
"""

import torch
from torch import nn

EXPECTED = {"weight": "not finite"}


def make():
    model, x = nn.Linear(4, 1, bias=False).half(), torch.full((8, 4), 1e-3, dtype=torch.float16)
    x[:, 0] = 0
    return model, lambda: model(x).sum(), torch.optim.Adam(model.parameters(), foreach=False)
