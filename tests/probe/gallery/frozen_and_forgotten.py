"""`requires_grad = False` is left over from feature extraction.

Seen: only the last layer trains, or "empty parameter list".
Fix: set it to True for layers that are to learn.
Source: https://github.com/lxztju/pytorch_classification/issues/26
"""

import torch
from torch import nn

EXPECTED = {"body.*": "frozen", "head.*": "learns"}


def make():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    for parameter in model["body"].parameters():
        parameter.requires_grad = False
    x = torch.randn(8, 4)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    return model, lambda: model["head"](model["body"](x)).square().mean(), optimizer
