"""Parameters in a plain dict are not registered with the module.

Seen: `parameters()` does not list them.
Fix: `nn.ParameterDict`.
Source: https://github.com/pytorch/pytorch/issues/632
"""

import torch
from torch import nn

EXPECTED = {"out.*": "learns"}
REMARK = "The loss also reaches 2 Parameters"


class Relations(nn.Module):
    def __init__(self):
        super().__init__()
        self.relations = {name: nn.Parameter(torch.randn(4)) for name in ("has", "is")}
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        return self.out(x * self.relations["has"] + self.relations["is"])


def make():
    model, x = Relations(), torch.randn(8, 4)
    return model, lambda: model(x).square().mean(), torch.optim.SGD(model.parameters(), lr=0.1)
