"""A layer is defined in `__init__` and forgotten in `forward`.

Seen: under DistributedDataParallel an error about unfinished reductions; in one process nothing at all.
Fix: call the layer, or delete it.
Source: https://github.com/NVlabs/PWC-Net/issues/110
"""

import torch
from torch import nn

EXPECTED = {"conv.*": "learns", "deconv.*": "unused"}


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.deconv = nn.ConvTranspose2d(2, 2, 4)

    def forward(self, x):
        return self.conv(x)


def make():
    model, x = Flow(), torch.randn(2, 1, 6, 6)
    return model, lambda: model(x).square().mean(), torch.optim.Adam(model.parameters())
