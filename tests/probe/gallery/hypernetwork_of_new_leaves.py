"""The weights that a hypernetwork makes are turned into leaves before an ensemble runs with them under `vmap`.

Seen: outputs are the same as without, gradients are not.
Fix: pass the weights as they are; `retain_grad()` shows their gradients.
Source: https://github.com/pytorch/functorch/issues/1071
"""

import torch
from torch import nn

EXPECTED = {"hyper.*": "cut", "bias": "learns"}


class Hyper(nn.Module):
    def __init__(self):
        super().__init__()
        self.hyper = nn.Linear(2, 12)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, codes, x):
        def member(code, here):
            weight = self.hyper(code).detach()  # <- hyper.*
            return here @ weight.view(4, 3) + self.bias

        return torch.vmap(member)(codes, x)


def make():
    model, codes, x = Hyper(), torch.randn(5, 2), torch.randn(5, 6, 4)
    return model, lambda: (model(codes, x) - 1).square().mean(), torch.optim.Adam(model.parameters())
