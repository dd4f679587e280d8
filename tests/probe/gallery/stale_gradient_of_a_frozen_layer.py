"""A layer is frozen between two steps, and its last gradient stays where it was.

Seen: the frozen layer still changes a little at every step.
Fix: set `.grad` to None when freezing, and zero gradients with `set_to_none=True`.
Source: https://discuss.pytorch.org/t/why-there-is-still-a-small-change-in-frozen-layer-parameters/153740
"""

import torch
from torch import nn

EXPECTED = {"fc1.*": "moves without gradient", "fc2.*": "learns"}


def make():
    model = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 4)

    def loss_fn():
        return model["fc2"](torch.tanh(model["fc1"](x))).square().mean()

    loss_fn().backward()
    optimizer.step()
    model["fc1"].requires_grad_(False)
    return model, loss_fn, optimizer
