"""Graph pooling keeps the best nodes by their scores, and never multiplies by the scores.

Seen: the parameters of the pooling layers remain unchanged, their gradients are None.
Fix: gate what is kept: `h[best] * scores[best].sigmoid().unsqueeze(-1)`.
Source: https://github.com/pytorch/pytorch/issues/40983
"""

import torch
from torch import nn

EXPECTED = {"score.*": "cut", "read.*": "learns"}


def make():
    model = nn.ModuleDict({"score": nn.Linear(4, 1), "read": nn.Linear(4, 1)})
    nodes = torch.randn(10, 4)

    def loss_fn():
        best = model["score"](nodes).squeeze(1).topk(3).indices  # <- score.*
        return model["read"](nodes[best]).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
