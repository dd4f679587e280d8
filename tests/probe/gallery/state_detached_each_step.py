"""The hidden state is detached in every step, so the learned first state is never reached.

Seen: "why take the previous hidden state out of the graph?", where the gap between cuts is one step.
Fix: detach between chunks, not inside them.
Source: https://github.com/IC3Net/IC3Net/issues/7
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
