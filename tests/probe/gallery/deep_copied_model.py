"""The model is deep-copied after the optimizer was made, and the copy is trained.

Seen: the weights of the copy are frozen and do not update.
Fix: make a new optimizer for the copy.
Source: https://github.com/skorch-dev/skorch/issues/317
"""

import copy

import torch
from torch import nn

EXPECTED = {"*": "not in optimizer"}
REMARK = "The optimizer holds 4 tensors"


def make():
    first = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    model, x = copy.deepcopy(first), torch.randn(8, 4)
    return model, lambda: model(x).square().mean(), optimizer
