"""A `filter` of parameters is counted before the optimizer gets it, and is empty by then.

Seen: "optimizer got an empty parameter list", or nothing at all where other groups have parameters.
Fix: `[p for p in model.parameters() if p.requires_grad]`, a list.
Source: https://github.com/YanaiEliyahu/AdasOptimizer/issues/2
"""

import torch
from torch import nn

EXPECTED = {"body.*": "not in optimizer", "head.*": "learns"}


def make():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    body = filter(lambda p: p.requires_grad, model["body"].parameters())
    assert sum(p.numel() for p in body) == 20  # the count for the log
    optimizer = torch.optim.Adam([{"params": body, "lr": 1e-4}, {"params": model["head"].parameters()}])
    x = torch.randn(8, 4)
    return model, lambda: model["head"](model["body"](x)).square().mean(), optimizer
