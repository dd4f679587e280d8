"""Layers in a plain Python list: the model does not know them, and neither does the optimizer.

Seen: `parameters()` is empty or short, the layers in the list never change.
Fix: `nn.ModuleList`.
Source: https://github.com/pytorch/pytorch/issues/59925
"""

import torch
from torch import nn

EXPECTED = {"head.*": "learns"}
REMARK = "The loss also reaches 4 Parameters"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4) for _ in range(2)]
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def make():
    model, x = Net(), torch.randn(8, 4)
    return model, lambda: model(x).square().mean(), torch.optim.Adam(model.parameters())
