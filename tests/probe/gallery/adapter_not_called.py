"""The loss reads the weight of the head instead of calling it, so the adapter around the head never runs.

Seen: the loss is flat and the adapter's gradients are None.
Fix: call the module, or train the head itself.
Source: https://github.com/unslothai/unsloth/pull/9331
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"body.*": "learns", "head.base.weight": "frozen", "head.lora_*": "unused"}


class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Linear(4, 2, bias=False)
        self.lora_b = nn.Linear(2, 9, bias=False)

    @property
    def weight(self):
        return self.base.weight

    def forward(self, h):
        return self.base(h) + self.lora_b(self.lora_a(h))


def make():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": Adapted(nn.Linear(4, 9, bias=False))})
    x, y = torch.randn(8, 4), torch.randint(9, (8,))

    def loss_fn():
        return F.cross_entropy(model["body"](x) @ model["head"].weight.t(), y)  # a fused loss reads the weight

    return model, loss_fn, torch.optim.Adam(model.parameters())
