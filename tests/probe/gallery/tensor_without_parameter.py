"""A learned tensor is made with `requires_grad_` and never wrapped in `nn.Parameter`.

Seen: the peephole weights are not in `parameters()`, are not saved, and stay as drawn.
Fix: `nn.Parameter(...)`.
Source: https://github.com/automan000/Convolutional_LSTM_PyTorch/issues/17
"""

import torch
from torch import nn

EXPECTED = {"gates.*": "learns"}
REMARK = "The loss also reaches 1 tensor"


class Peephole(nn.Module):
    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(3, 3)
        self.peep = torch.zeros(3).requires_grad_()

    def forward(self, x):
        cell = torch.tanh(x)
        return torch.sigmoid(self.gates(x) + self.peep * cell)


def make():
    model, x = Peephole(), torch.randn(8, 3)
    return model, lambda: (model(x) - 1).square().mean(), torch.optim.Adam(model.parameters())
