"""Both factors of a low-rank adapter start at zero.

Seen: training is stuck: the gradient of each factor is a product with the other.
Fix: one factor random, the other zero.
Source: https://github.com/Guitaricet/relora/issues/18
"""

import torch
from torch import nn

EXPECTED = {"base.*": "frozen", "a.weight": "zero gradient", "b.weight": "zero gradient", "scale": "zero gradient"}


class LoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 3).requires_grad_(False)
        self.a = nn.Linear(4, 2, bias=False)
        self.b = nn.Linear(2, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.a.weight)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.base(x) + self.scale * self.b(self.a(x))


def make():
    model, x = LoRA(), torch.randn(8, 4)
    return model, lambda: model(x).square().mean(), torch.optim.Adam(model.parameters())
