"""Half precision without scaling: a sum of squares beyond 65,504.

Seen: "Skip this batch (Loss: inf)" for every batch.
Fix: bfloat16, or float32 weights with autocast and GradScaler.
Source: https://github.com/sanghyun-son/EDSR-PyTorch/issues/36
"""

import torch
from torch import nn

EXPECTED = {"*": "not finite"}


def make():
    model, x = nn.Linear(4, 4).half(), torch.full((8, 4), 300.0, dtype=torch.float16)
    nn.init.ones_(model.weight)
    return model, lambda: (model(x) ** 2).sum(), torch.optim.SGD(model.parameters(), lr=1e-3)
