"""A forward that reads `.data`.

Seen: the layers before it get no gradient and no error is raised.
Fix: leave `.data` out; to copy values without a gradient say `.detach()`, and only where that is meant.
Source: https://github.com/eriklindernoren/PyTorch-YOLOv3/issues/211
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"backbone.*": "cut", "boxes.*": "learns"}


def make():
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4), "boxes": nn.Linear(4, 2)})
    x, y = torch.randn(8, 4), torch.randn(8, 2)

    def loss_fn():
        centers = torch.sigmoid(model["backbone"](x))
        centers = centers.data + 0.5  # <- backbone.*
        return F.mse_loss(model["boxes"](centers), y)

    return model, loss_fn, torch.optim.Adam(model.parameters())
