"""Every label of a batch is `ignore_index`.

Seen: the mean over no tokens is NaN.
Fix: skip such batches, or sum and divide by `max(count, 1)`.
Source: https://github.com/pytorch/pytorch/issues/70348
"""

import torch
from torch import nn

EXPECTED = {"*": "not finite"}


def make():
    model, x = nn.Linear(4, 5), torch.randn(8, 4)
    labels = torch.full((8,), -100)
    return model, lambda: nn.functional.cross_entropy(model(x), labels), torch.optim.AdamW(model.parameters())
