"""Reinforcement-learning rates on bfloat16 weights: an update of 6e-7 against weights of 0.1.

Seen: very bad convergence, compared with float32.
Fix: keep a float32 copy of the weights.
Source: https://github.com/meta-pytorch/torchtune/issues/2254
"""

import torch
from torch import nn

EXPECTED = {"*": "rounds away"}


def make():
    model, x = nn.Linear(4, 4), torch.randn(16, 4, dtype=torch.bfloat16)
    nn.init.constant_(model.weight, 0.1)
    nn.init.constant_(model.bias, 0.1)
    model = model.bfloat16()
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.AdamW(model.parameters(), lr=6e-7)
