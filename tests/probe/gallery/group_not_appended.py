"""A parameter group is built but never appended to the list of groups.

Seen: the CRF and the classifier are said to train, and do not.
Fix: `groups.append(group)` after the second group too.
Source: https://github.com/zjunlp/HVPNeT/issues/5
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"encoder.*": "learns", "classifier.*": "not in optimizer"}


def make():
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "classifier": nn.Linear(4, 3)})
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    groups = []
    group = {"params": list(model["encoder"].parameters()), "lr": 1e-3}
    groups.append(group)
    group = {"params": list(model["classifier"].parameters()), "lr": 1e-2}

    def loss_fn():
        return F.cross_entropy(model["classifier"](model["encoder"](x)), y)

    return model, loss_fn, torch.optim.AdamW(groups)
