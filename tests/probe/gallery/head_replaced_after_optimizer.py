"""The head is replaced after the optimizer was made.

Seen: the optimizer works on parameters that the model no longer has, without a warning.
Fix: make the optimizer last.
Source: https://github.com/pytorch/pytorch/issues/14467
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"body.*": "learns", "head.*": "not in optimizer"}
REMARK = "The optimizer holds 2 tensors"


def make():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 1000)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model["head"] = nn.Linear(4, 3)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    return model, lambda: F.cross_entropy(model["head"](model["body"](x)), y), optimizer
