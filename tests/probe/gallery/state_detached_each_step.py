"""The hidden state is detached in every step, so the learned first state is never reached.

Seen: `requires_grad` of the state is True once and False from then on.
Fix: detach between chunks, not inside them.
Source: https://github.com/OpenNMT/OpenNMT-py/issues/1148
"""

import torch
from torch import nn

EXPECTED = {"first": "cut", "cell.*": "learns"}


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, 3))
        self.cell = nn.GRUCell(2, 3)

    def forward(self, sequence):
        state = self.first
        for x in sequence:
            state = self.cell(x, state.detach())  # <- first
        return state


def make():
    model, sequence = Reader(), torch.randn(4, 1, 2)
    return model, lambda: (model(sequence) - 1).square().mean(), torch.optim.Adam(model.parameters())
