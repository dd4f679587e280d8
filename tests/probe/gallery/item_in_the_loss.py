"""The log-probability enters the loss as a Python number.

Seen: every gradient of the policy is None, the weights do not change.
Fix: multiply the tensor itself: `-(log_prob * reward)`.
Source: https://github.com/isayev/ReLeaSE/issues/39
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"policy.*": "cut", "critic.*": "learns"}


def make():
    model = nn.ModuleDict({"policy": nn.Linear(4, 3), "critic": nn.Linear(4, 1)})
    state, reward = torch.randn(1, 4), 2.0

    def loss_fn():
        log_prob = F.log_softmax(model["policy"](state), -1)[0, 1]
        value = model["critic"](state).squeeze()
        return -log_prob.item() * reward + (value - reward) ** 2  # <- policy.*

    return model, loss_fn, torch.optim.Adam(model.parameters())
