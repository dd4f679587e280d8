"""A Dice loss with a threshold, wrapped in a tensor that requires grad.

Seen: "does not require grad" is gone, the loss is right, and nothing trains at all.
Fix: a soft Dice loss on the probabilities themselves.
Source: https://github.com/qubvel-org/segmentation_models.pytorch/pull/611
"""

import torch
from torch import nn

EXPECTED = {"*": "cut"}


def make():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
    x, y = torch.randn(2, 1, 8, 8), torch.randint(2, (2, 1, 4, 4)).float()

    def loss_fn():
        p = torch.sigmoid(model(x))
        p = (p > 0.5).type(p.dtype).requires_grad_()  # <- *
        return 1 - 2 * (p * y).sum() / (p.sum() + y.sum())

    return model, loss_fn, torch.optim.Adam(model.parameters())
