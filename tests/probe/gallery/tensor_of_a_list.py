"""`torch.tensor([...])` of the log-probabilities of an episode.

Seen: REINFORCE runs for hours and the policy does not move.
Fix: `torch.stack(log_probs)`; `torch.tensor` copies values.
Source: https://github.com/kengz/SLM-Lab/pull/133
"""

import torch
from torch import nn

EXPECTED = {"policy.*": "cut", "baseline.*": "learns"}


def make():
    model = nn.ModuleDict({"policy": nn.Linear(4, 3), "baseline": nn.Linear(4, 1)})
    states, rewards = torch.randn(5, 4), torch.randn(5)

    def loss_fn():
        log_probs = [model["policy"](state).log_softmax(-1)[0] for state in states]
        log_probs = torch.tensor(log_probs)  # <- policy.*
        advantage = rewards - model["baseline"](states).squeeze(-1)
        return -(log_probs * advantage).mean() + advantage.square().mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
