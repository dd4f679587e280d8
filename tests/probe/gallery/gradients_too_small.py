"""A loss averaged over so much that a float32 weight of 100 never changes.

Seen: ramping up from a factor near 0, the updates vanish.
Fix: a larger factor or learning rate; Adam, whose step does not depend on the scale.
Source: https://github.com/kyegomez/SingLoRA/issues/6
"""

import torch
from torch import nn

EXPECTED = {"weight": "rounds away"}


def make():
    model, x = nn.Linear(4, 1, bias=False), torch.randn(8, 4)
    nn.init.constant_(model.weight, 100.0)
    return model, lambda: model(x).mean() * 1e-4, torch.optim.SGD(model.parameters(), lr=0.01)
