"""Frozen in the middle of training, gradients zeroed in place: momentum goes on moving the layer.

Seen: "why are parameters still updated even if requires_grad is False?"
Fix: `zero_grad(set_to_none=True)`, or take the layer out of the optimizer.
Source: https://github.com/facebookresearch/fairseq/issues/4702
"""

import torch
from torch import nn

EXPECTED = {"fc1.*": "moves without gradient", "fc2.*": "learns"}


def make():
    model = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 1)})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(8, 4)

    def loss_fn():
        return model["fc2"](torch.tanh(model["fc1"](x))).square().mean()

    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        loss_fn().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    model["fc1"].requires_grad_(False)
    return model, loss_fn, optimizer
