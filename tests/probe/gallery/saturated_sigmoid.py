"""Unscaled inputs of some thousands saturate a sigmoid completely.

Seen: every gradient printed is 0.
Fix: scale the inputs; a loss on logits.
Source: https://github.com/pytorch/pytorch/issues/31396
"""

import torch
from torch import nn

EXPECTED = {"*": "zero gradient"}


def make():
    model = nn.Sequential(nn.Linear(50, 1), nn.Sigmoid())
    nn.init.constant_(model[0].weight, 1.0)
    x, y = torch.full((4, 50), 11.0), torch.zeros(4, 1)
    return model, lambda: nn.functional.mse_loss(model(x), y), torch.optim.Adam(model.parameters())
