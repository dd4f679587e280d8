"""AdamW at 1e-4 on bfloat16 weights of 1: the next number below 1 is 0.996.

Seen: norms and scales keep their initial values for the whole run.
Fix: float32 weights, or an optimizer with stochastic rounding.
Source: https://github.com/pytorch/ao/pull/1124
"""

import torch
from torch import nn

EXPECTED = {"weight": "rounds away", "bias": "learns"}


def make():
    model = nn.LayerNorm(8).bfloat16()
    x = torch.randn(16, 8, dtype=torch.bfloat16)
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.AdamW(model.parameters(), lr=1e-4)
