"""Actions are drawn with `torch.bernoulli(p)`, which has a `grad_fn` and a gradient of zero.

Seen: removing `.detach()` from the reward does not help.
Fix: a policy gradient: multiply the log-probability by the reward.
Source: https://github.com/KaiyangZhou/pytorch-vsumm-reinforce/issues/5
"""

import torch
from torch import nn

EXPECTED = {"policy.*": "zero gradient", "value.*": "learns"}


def make():
    model = nn.ModuleDict({"policy": nn.Linear(4, 1), "value": nn.Linear(1, 1)})
    frames = torch.randn(8, 4)

    def loss_fn():
        actions = torch.bernoulli(torch.sigmoid(model["policy"](frames)))
        return (model["value"](actions) - 1).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
