"""A decorator casts what a function returns with `torch.tensor(...)`.

Seen: gradients reach the system and vanish before the policy.
Fix: `value.to(torch.float32)` keeps the gradient.
Source: https://github.com/pnnl/neuromancer/issues/118
"""

import functools
import warnings

import torch
from torch import nn

EXPECTED = {"policy.*": "cut", "system.*": "learns"}


def in_float32(function):
    @functools.wraps(function)
    def run(*args):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns here, once a process, and few read it
            return torch.tensor(function(*args), dtype=torch.float32)  # <- policy.*

    return run


@in_float32
def heat_flow(action):
    return action.clamp(-1, 1) * 0.5


def make():
    model = nn.ModuleDict({"policy": nn.Linear(4, 2), "system": nn.Linear(2, 1)})
    x = torch.randn(8, 4)
    return (
        model,
        lambda: model["system"](heat_flow(model["policy"](x))).square().mean(),
        torch.optim.Adam(model.parameters()),
    )
