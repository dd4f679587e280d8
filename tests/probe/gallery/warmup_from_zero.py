"""A warmup schedule starts at 0, so the first step does nothing.

Seen: the model after step 1 is the model before it.
Fix: let the schedule start at 1 / warmup steps.
Source: https://github.com/huggingface/transformers/issues/34754
"""

import torch
from torch import nn

EXPECTED = {"*": "learning rate 0"}


def make():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)
    return model, lambda: model(x).square().mean(), optimizer
