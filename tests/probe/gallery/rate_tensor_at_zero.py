"""The learning rate is a tensor, and a barlow-twins style schedule sets it to 0 at step 0.

Seen: the very first weight update is missed.
Fix: start the schedule at step 1.
Source: https://github.com/facebookresearch/barlowtwins/issues/45
"""

import torch
from torch import nn

EXPECTED = {"*": "learning rate 0"}


def make():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3))
    for group in optimizer.param_groups:
        group["lr"].fill_(0.0)
    return model, lambda: model(x).square().mean(), optimizer
