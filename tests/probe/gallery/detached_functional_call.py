"""`functional_call` is given detached parameters.

Seen: the outer loss has no path to the meta-parameters.
Fix: leave `.detach()` out; for a first-order method detach the inner gradients only.
Source: https://github.com/facebookresearch/higher/issues/102
"""

import torch
from torch import nn
from torch.func import functional_call

EXPECTED = {"inner.*": "cut", "outer.*": "learns"}


def make():
    model = nn.ModuleDict({"inner": nn.Linear(4, 4), "outer": nn.Linear(4, 1)})
    x = torch.randn(8, 4)

    def loss_fn():
        fixed = {name: parameter.detach() for name, parameter in model["inner"].named_parameters()}  # <- inner.*
        return model["outer"](functional_call(model["inner"], fixed, x)).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
