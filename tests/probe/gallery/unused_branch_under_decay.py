"""A branch that was not sampled in this step has a gradient of zeros, and decay and momentum change it.

Seen: a supernet's branches move in steps that do not use them.
Fix: `.grad = None` for what was not used; `zero_grad(set_to_none=True)`.
Source: https://github.com/megvii-model/DetNAS/issues/3
"""

import torch
from torch import nn

EXPECTED = {"branches.0.*": "learns", "branches.1.*": "unused"}
NOTES = {"branches.1.*": "moves without gradient"}


class Supernet(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
        self.sampled = 1

    def forward(self, x):
        return self.branches[self.sampled](x)


def make():
    model, x = Supernet(), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def loss_fn():
        return model(x).square().mean()

    loss_fn().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    model.sampled = 0
    return model, loss_fn, optimizer
