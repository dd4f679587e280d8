"""An optimizer is built from leaf modules, so a parameter of a module with children is missed.

Seen: an `nn.Parameter` beside submodules is not optimized.
Fix: build from `named_parameters()`, or wrap the parameter in a module of its own.
Source: https://github.com/open-mmlab/OpenPCDet/issues/960
"""

import torch
from torch import nn

EXPECTED = {"query": "not in optimizer", "layer.*": "learns"}


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(4))
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x * self.query)


def make():
    model, x = Detector(), torch.randn(8, 4)
    leaves = [module for module in model.modules() if not list(module.children())]
    optimizer = torch.optim.Adam([{"params": leaf.parameters()} for leaf in leaves])
    return model, lambda: model(x).square().mean(), optimizer
