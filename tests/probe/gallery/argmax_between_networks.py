"""A generator's output goes through `argmax` into the discriminator.

Seen: the generator does not learn, or an error about missing gradients.
Fix: pass the softmax or a Gumbel softmax, or use a policy gradient.
Source: https://github.com/eriklindernoren/Keras-GAN/issues/61
"""

import torch
from torch import nn

EXPECTED = {"generator.*": "cut", "discriminator.*": "learns"}


def make():
    model = nn.ModuleDict({"generator": nn.Linear(4, 6), "discriminator": nn.Embedding(6, 1)})
    noise = torch.randn(8, 4)

    def loss_fn():
        tokens = model["generator"](noise).argmax(-1)  # <- generator.*
        return model["discriminator"](tokens).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
