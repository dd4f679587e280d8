"""Layers are unfrozen later, and the optimizer was made from what required grad before.

Seen: gradients for the unfrozen layers, and no change in them.
Fix: `optimizer.add_param_group(...)` when unfreezing, or give the optimizer everything from the start.
Source: https://github.com/pytorch/pytorch/issues/20997
"""

import torch
from torch import nn

EXPECTED = {"backbone.*": "not in optimizer", "head.*": "learns"}


def make():
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    model["backbone"].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    model["backbone"].requires_grad_(True)
    x = torch.randn(8, 4)
    return model, lambda: model["head"](model["backbone"](x)).square().mean(), optimizer
