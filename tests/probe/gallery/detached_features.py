"""The features are detached for a probe, and the main branch uses the detached ones too.

Seen: the encoder stays as it was initialised, the head learns.
Fix: detach only what the probe sees: `probe(h.detach())`.
Source: https://github.com/vturrisi/solo-learn/issues/135
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"encoder.*": "cut", "head.*": "learns"}


def make():
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    x, y = torch.randn(8, 4), torch.randn(8, 1)

    def loss_fn():
        features = model["encoder"](x).detach()  # <- encoder.*
        return F.mse_loss(model["head"](features), y)

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
