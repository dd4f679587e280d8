"""A predicted position is cast to an index.

Seen: `grad_fn` is there before `.long()` and gone after it.
Fix: interpolate between the neighbouring entries, or weight all of them softly.
Source: https://github.com/pytorch/pytorch/issues/91431
"""

import torch
from torch import nn

EXPECTED = {"position.*": "cut", "table.*": "learns"}


def make():
    model = nn.ModuleDict({"position": nn.Linear(4, 1), "table": nn.Embedding(10, 3)})
    x = torch.randn(8, 4)

    def loss_fn():
        where = (model["position"](x).clamp(0, 9)).long().squeeze(1)  # <- position.*
        return model["table"](where).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
