"""The result of a call is not assigned, because the call was thought to work in place.

Seen: it "has no effect".
Fix: `h = norm(h)`.
Source: https://github.com/pytorch/tutorials/pull/30
"""

import torch
from torch import nn

EXPECTED = {"layer.*": "learns", "norm.*": "unused", "out.*": "learns"}


def make():
    model = nn.ModuleDict({"layer": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "out": nn.Linear(4, 1)})
    x = torch.randn(8, 4)

    def loss_fn():
        h = model["layer"](x)
        model["norm"](h)
        return model["out"](h).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
