"""A gradient penalty whose inner gradient is taken without `create_graph=True`.

Seen: the penalty has a value and "won't backward" to the network: the inner gradient is just a single variable.
Fix: `torch.autograd.grad(..., create_graph=True)`.
Source: https://github.com/igul222/improved_wgan_training/issues/18
"""

import torch
from torch import nn

EXPECTED = {"critic.*": "cut", "weight_of_penalty": "learns"}


class Penalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))
        self.weight_of_penalty = nn.Parameter(torch.tensor(10.0))

    def forward(self, between):
        score = self.critic(between.requires_grad_()).sum()
        (slope,) = torch.autograd.grad(score, between)  # <- critic.*
        return self.weight_of_penalty * (slope.norm(dim=1) - 1).square().mean()


def make():
    model, between = Penalized(), torch.randn(8, 4)
    return model, lambda: model(between), torch.optim.Adam(model.parameters(), betas=(0.5, 0.9))
