"""The inner loop of MAML writes the adapted weights through `.data`.

Seen: the meta-model never trains.
Fix: make new tensors: `fast = weight - lr * grad`, and run with `torch.func.functional_call`.
Source: https://github.com/KanishJebaMathewM/Truxify/issues/13118
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"weight": "cut", "bias": "learns"}


class Meta(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4))
        self.bias = nn.Parameter(torch.zeros(1))

    def adapted(self, x, y):
        support = F.mse_loss(F.linear(x, self.weight, self.bias), y)
        (grad,) = torch.autograd.grad(support, self.weight, create_graph=True)
        fast = torch.empty(1, 4)
        fast.data[:] = self.weight - 0.1 * grad  # <- weight
        return fast


def make():
    model = Meta()
    x, y = torch.randn(8, 4), torch.randn(8, 1)

    def loss_fn():
        fast = model.adapted(x[:4], y[:4])
        return F.mse_loss(F.linear(x[4:], fast, model.bias), y[4:])

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
