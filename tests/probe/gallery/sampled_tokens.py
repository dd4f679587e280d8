"""Tokens are drawn with `multinomial` and fed to the next network.

Seen: "how does the error of the discriminator reach the generator?" It does not.
Fix: a policy gradient on the log-probability of what was drawn.
Source: https://github.com/LantaoYu/SeqGAN/issues/31
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"generator.*": "cut", "discriminator.*": "learns"}


def make():
    model = nn.ModuleDict({"generator": nn.Linear(4, 6), "discriminator": nn.Linear(6, 1)})
    noise = torch.randn(8, 4)

    def loss_fn():
        tokens = torch.multinomial(model["generator"](noise).softmax(-1), 1).squeeze(1)  # <- generator.*
        real = model["discriminator"](F.one_hot(tokens, 6).float())
        return F.softplus(-real).mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
