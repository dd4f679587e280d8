"""The vision tower's output is added times 0, to keep DistributedDataParallel from complaining about text batches.

Seen: the gradient norm is 0, nothing in the tower is updated.
Fix: that is right for a batch without pictures; check that batches with pictures take the other branch.
Source: https://github.com/OpenBMB/MiniCPM-V/issues/637
"""

import torch
from torch import nn

EXPECTED = {"vision.*": "zero gradient", "text.*": "learns"}


def make():
    model = nn.ModuleDict({"vision": nn.Linear(4, 4), "text": nn.Embedding(9, 4)})
    pixels, ids = torch.randn(8, 4), torch.arange(9)

    def loss_fn():
        h = model["text"](ids)
        h = h + model["vision"](pixels)[0].mean() * 0
        return h.square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
