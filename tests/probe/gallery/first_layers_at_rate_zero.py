"""Groups with their own learning rates, one of which is 0.

Seen: "what is the rationale behind disabling training of the first convolution?"
Fix: give the group a rate, or freeze it explicitly.
Source: https://github.com/natanielruiz/deep-head-pose/issues/113
"""

import torch
from torch import nn

EXPECTED = {"first.*": "learning rate 0", "rest.*": "learns"}


def make():
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "rest": nn.Linear(4, 1)})
    x = torch.randn(8, 4)
    groups = [
        {"params": model["first"].parameters(), "lr": 0},
        {"params": model["rest"].parameters(), "lr": 5e-3},
    ]
    return model, lambda: model["rest"](model["first"](x)).square().mean(), torch.optim.Adam(groups, lr=1e-3)
