"""The optimizer is given the encoder and not the decoder.

Seen: "how shall we optimize the parameters in the decoder?"
Fix: `itertools.chain(encoder.parameters(), decoder.parameters())`.
Source: https://github.com/cabralpinto/modular-diffusion/issues/17
"""

import torch
from torch import nn

EXPECTED = {"encoder.*": "learns", "decoder.*": "not in optimizer"}


def make():
    model = nn.ModuleDict({"encoder": nn.Linear(4, 2), "decoder": nn.Linear(2, 4)})
    optimizer = torch.optim.Adam(model["encoder"].parameters())
    x = torch.randn(8, 4)
    return model, lambda: (model["decoder"](model["encoder"](x)) - x).square().mean(), optimizer
