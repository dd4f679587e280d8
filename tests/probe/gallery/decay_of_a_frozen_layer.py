"""Gradients are set to zero by hand for layers that should rest, and decay shrinks them.

Seen: a supernet's unused branches are changed by momentum and weight decay unless their grad is set to None.
Fix: set `.grad` to None where nothing is to move.
Source: https://github.com/megvii-model/DetNAS/issues/3
"""

import torch
from torch import nn

EXPECTED = {"resting.*": "moves without gradient", "active.*": "learns"}


def make():
    model = nn.ModuleDict({"resting": nn.Linear(4, 4), "active": nn.Linear(4, 4)})
    for parameter in model["resting"].parameters():
        parameter.requires_grad_(False).grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    x = torch.randn(8, 4)
    return model, lambda: model["active"](model["resting"](x)).square().mean(), optimizer
