"""Features made under `torch.inference_mode()` and cloned, because training on them raised.

Seen: "Inference tensors cannot be saved for backward" goes away with a clone, and so does the gradient.
Fix: no inference mode in training; freeze with `requires_grad_(False)` if that is what is meant.
Source: https://github.com/facebookresearch/dinov2/issues/472
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"backbone.*": "cut", "depth.*": "learns"}


def make():
    model = nn.ModuleDict({"backbone": nn.Linear(5, 4), "depth": nn.Linear(4, 1)})
    x, y = torch.randn(8, 5), torch.randn(8, 1)

    def loss_fn():
        with torch.inference_mode():
            features = model["backbone"](x)  # <- backbone.*
        return F.mse_loss(model["depth"](features.clone()), y)

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
