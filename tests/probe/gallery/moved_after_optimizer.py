"""The model moves after the optimizer was made, and moving makes new Parameters.

Seen: on XLA devices gradients and everything else look right, and the weights stay.
Fix: move first, then make the optimizer.
Source: https://github.com/pytorch/xla/issues/1623
"""

import torch
from torch import nn

EXPECTED = {"*": "not in optimizer"}


def make():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # as on XLA: new Parameters
    try:
        model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    x = torch.randn(8, 4, dtype=torch.float64)
    return model, lambda: model(x).square().mean(), optimizer
