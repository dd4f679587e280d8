"""The first convolution is called twice, the second never.

Seen: a network that works, only worse than the paper.
Fix: `self.layer2(h)`.
Source: https://github.com/inria-thoth/HySUPP/issues/3
"""

import torch
from torch import nn

EXPECTED = {"layer1.*": "learns", "layer2.*": "unused", "out.*": "learns"}


class Unmixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Linear(4, 4)
        self.layer2 = nn.Linear(4, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        h = torch.tanh(self.layer1(x))
        h = torch.tanh(self.layer1(h))
        return self.out(h)


def make():
    model, x = Unmixing(), torch.randn(8, 4)
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.SGD(model.parameters(), lr=0.1)
