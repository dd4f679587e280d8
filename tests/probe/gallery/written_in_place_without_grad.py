"""A cache is filled with new activations under `torch.no_grad()`, then used.

Seen: what is written into the cache learns nothing.
Fix: build the tensor that is used with `cat` or `roll`, outside `no_grad`, and store a detached copy.
Source: https://github.com/pytorch/pytorch/issues/126524
"""

import torch
from torch import nn

EXPECTED = {"keys.*": "cut", "read.*": "learns"}


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.keys = nn.Linear(4, 4)
        self.read = nn.Linear(4, 1)
        self.register_buffer("cache", torch.zeros(8, 4))

    def forward(self, x):
        h = self.keys(x)
        with torch.no_grad():
            self.cache[4:] = h  # <- keys.*
        return self.read(self.cache.clone())


def make():
    model, x = Memory(), torch.randn(4, 4)
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.Adam(model.parameters())
