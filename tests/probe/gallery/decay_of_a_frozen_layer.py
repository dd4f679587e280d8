"""Frozen parameters keep a gradient of zeros, and an optimizer with decay shrinks them.

Seen: `requires_grad` is False, and the weights are still updated under one optimizer, and not under another.
Fix: set `.grad` to None for what must not move, or keep frozen parameters out of the optimizer.
Source: https://github.com/open-mmlab/OpenPCDet/issues/845
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
