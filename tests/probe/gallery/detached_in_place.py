"""The state of the encoder is detached in place with `detach_`, for good, although a decoder still needs it.

Seen: `requires_grad` of the state is False from then on, wherever it is used.
Fix: `state.detach()` makes a copy without a gradient and leaves the state alone.
Source: https://github.com/OpenNMT/OpenNMT-py/issues/1148
"""

import torch
from torch import nn

EXPECTED = {"encoder.*": "cut", "decoder.*": "learns"}


def make():
    model = nn.ModuleDict({"encoder": nn.Linear(4, 3), "decoder": nn.GRUCell(3, 3)})
    x, steps = torch.randn(8, 4), torch.randn(2, 8, 3)

    def loss_fn():
        state = torch.tanh(model["encoder"](x))
        state.detach_()  # <- encoder.*
        for step in steps:
            state = model["decoder"](step, state)
        return state.square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
