"""`torch.as_tensor((a, b))`, with `requires_grad` switched on afterwards so that `backward` does not complain.

Seen: no error, and the gradients of a and b stay None.
Fix: `torch.stack((a, b))`, and never switch `requires_grad` on in the middle.
Source: https://github.com/lululxvi/deepxde/pull/1318
"""

import torch
from torch import nn

EXPECTED = {"*": "cut"}


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.b = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        both = torch.as_tensor((self.a, self.b))  # <- *
        both.requires_grad = True
        return both[0] * x + both[1]


def make():
    model, x = Line(), torch.randn(8)
    return model, lambda: (model(x) - 3 * x).square().mean(), torch.optim.SGD(model.parameters(), lr=0.1)
