"""A quantizer stops the gradient and does not pass a straight-through one on.

Seen: everything before the quantizer keeps its initial weights.
Fix: `h + (quantized - h).detach()`.
Source: https://github.com/Justin-Tan/generative-compression/issues/27
"""

import torch
from torch import nn

import frostline as fl

EXPECTED = {"encoder.*": "cut", "decoder.*": "learns"}


def make():
    model = nn.ModuleDict({"encoder": nn.Linear(4, 2), "decoder": nn.Linear(2, 4)})
    x = torch.randn(8, 4)

    def loss_fn():
        h = model["encoder"](x)
        h = fl.stop_gradient(h.round())  # <- encoder.*
        return (model["decoder"](h) - x).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
