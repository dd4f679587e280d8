"""A softmax over one output is always 1.

Seen: the loss does not move from its first value.
Fix: a sigmoid for one output.
Source: https://github.com/FluxML/Flux.jl/issues/1546
"""

import torch
from torch import nn

EXPECTED = {"*": "zero gradient"}


def make():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), nn.Softmax(dim=-1))
    x, y = torch.randn(8, 2), torch.randint(2, (8, 1)).float()
    return model, lambda: nn.functional.mse_loss(model(x), y), torch.optim.Adam(model.parameters())
