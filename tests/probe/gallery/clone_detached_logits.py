"""Logits are cloned with a `.detach()` in front before masking.

Seen: a flow network whose loss would not go down: the log-probabilities had no gradient.
Fix: `policy_outputs.clone()`.
Source: https://github.com/alexhernandezgarcia/gflownet/pull/251
"""

import torch
from torch import nn

EXPECTED = {"policy.*": "cut", "flow": "learns"}


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy = nn.Linear(4, 3)
        self.flow = nn.Parameter(torch.zeros(()))

    def log_probs(self, states, masked):
        logits = self.policy(states).detach().clone()  # <- policy.*
        logits[masked] = -1e9
        return logits.log_softmax(-1)[:, 0]


def make():
    model, states = Flow(), torch.randn(8, 4)
    masked = torch.zeros(8, 3, dtype=torch.bool)
    masked[:, 2] = True

    def loss_fn():
        return (model.flow + model.log_probs(states, masked) - 1).square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
