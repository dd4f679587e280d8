"""A distribution is sampled with `sample`, which records no gradient.

Seen: the network that predicts where to look next never learns.
Fix: `rsample` where the distribution has it, else a policy gradient.
Source: https://github.com/kevinzakka/recurrent-visual-attention/issues/37
"""

import torch
from torch import nn

EXPECTED = {"encoder.*": "cut", "decoder.*": "learns"}


def make():
    model = nn.ModuleDict({"encoder": nn.Linear(5, 2), "decoder": nn.Linear(2, 5)})
    x = torch.randn(8, 5)

    def loss_fn():
        z = torch.distributions.Normal(model["encoder"](x), 0.1).sample()  # <- encoder.*
        return (model["decoder"](z) - x).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
