"""The schedule was made for fewer steps than are taken.

Seen: the learning rate warms up, quickly becomes 0, and training goes on.
Fix: count the steps of the schedule in the unit in which it is stepped.
Source: https://github.com/jaehyunnn/ViTPose_pytorch/issues/20
"""

import torch
from torch import nn

EXPECTED = {"*": "learning rate 0"}


def make():
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=3)

    def loss_fn():
        return model(x).square().mean()

    for _ in range(5):
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad()
    return model, loss_fn, optimizer
