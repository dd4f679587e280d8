"""Learned mixing weights are turned into a list with `tolist`, for a library that wants floats.

Seen: the mixing weights stay equal.
Fix: keep them a tensor: `(weights * features).sum(-1)`.
Source: https://github.com/ligerlac/torchlogix/pull/17
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"mix": "cut", "head.*": "learns"}


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(4, 1)

    def forward(self, features):
        weights = self.mix.softmax(0).tolist()  # <- mix
        return self.head(sum(weight * feature for weight, feature in zip(weights, features, strict=True)))


def make():
    model = Mixer()
    features, y = torch.randn(3, 8, 4), torch.randn(8, 1)
    return model, lambda: F.mse_loss(model(features), y), torch.optim.Adam(model.parameters())
