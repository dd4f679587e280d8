"""An attention row in which every key is masked: softmax of nothing but -inf.

Seen: NaN in all projection weights, although the row is not part of the loss.
Fix: let every row see at least one key, such as itself.
Source: https://github.com/pytorch/pytorch/issues/41508
"""

import torch
from torch import nn

EXPECTED = {"qkv.*": "not finite", "out.*": "learns"}


def make():
    model = nn.ModuleDict({"qkv": nn.Linear(4, 12), "out": nn.Linear(4, 1)})
    x = torch.randn(3, 4)
    mask = torch.tensor([[False, True, True], [False, False, True], [True, True, True]])

    def loss_fn():
        q, k, v = model["qkv"](x).chunk(3, -1)
        weights = (q @ k.t()).masked_fill(mask, float("-inf")).softmax(-1)
        return model["out"]((weights @ v)[:2]).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
