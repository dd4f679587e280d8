"""The model and the optimizers of these tests.

The loss is one of single entries, so that no entry's gradient depends on what else learns.
"""

import copy
import functools

import pytorch_optimizer
import schedulefree
import torch
from torch import nn

import frostline as fl

V, D = 12, 6
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "sgd plain": functools.partial(torch.optim.SGD, lr=0.1),
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
    "adam foreach": functools.partial(torch.optim.Adam, lr=0.01, foreach=True),
    "adam fused": functools.partial(torch.optim.Adam, lr=0.01, fused=True),
    "adam tensor lr": functools.partial(torch.optim.Adam, lr=torch.tensor(0.01)),
    "adamw amsgrad": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1, initial_accumulator_value=0.3),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "nadam": functools.partial(torch.optim.NAdam, lr=0.01),
    "radam": functools.partial(torch.optim.RAdam, lr=0.01, weight_decay=0.1),
    "adamax": functools.partial(torch.optim.Adamax, lr=0.01),
    "rprop": functools.partial(torch.optim.Rprop, lr=0.01),
    "asgd": functools.partial(torch.optim.ASGD, lr=0.01, t0=2),
    "adadelta": functools.partial(torch.optim.Adadelta, lr=1.0),
    "row sgd": functools.partial(fl.optim.RowSGD, lr=0.1, momentum=0.9, dampening=0.1),
    "row adagrad": functools.partial(fl.optim.RowAdagrad, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.3),
    "row adamw": functools.partial(fl.optim.RowAdamW, lr=0.01, amsgrad=True),
    "row adamw step": functools.partial(fl.optim.RowAdamW, lr=0.01, step_per_row=False),
    "lion": functools.partial(pytorch_optimizer.Lion, lr=0.01),
    "schedule free": functools.partial(schedulefree.AdamWScheduleFree, lr=0.01),
}
# torch's fused kernels may round a number at the end of a tensor differently from one in its middle
FUSED = ("adam fused",)


class Net(nn.Module):
    """A table with a tied head, a convolution, a bias: nothing is computed with them but `loss_of`."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = nn.Embedding(V, D, dtype=dtype)
        self.head = nn.Linear(D, V, dtype=dtype)
        self.head.weight = self.embed.weight
        self.conv = nn.Conv1d(3, 2, 2, dtype=dtype)


NAMES = ("embed.weight", "head.bias", "conv.weight", "conv.bias")


def loss_of(model):
    """A sum of one term for each entry, each with its own slope."""
    total = 0
    for name in NAMES:
        weight = model.get_parameter(name)
        steepness = torch.linspace(0.5, 2, weight.numel(), dtype=weight.dtype).view(weight.shape)
        total = total + (steepness * (weight - 1) * (weight - 1)).sum()
    return total


def steps(model, optimizer, count=3):
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def values(model):
    return {name: model.get_parameter(name).detach().clone() for name in NAMES}


def entries_of(name, *flat):
    shape = values(Net())[name].shape
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[list(flat)] = True
    return fl.entries(mask)


def two_plans(model, make, first, second, between=lambda optimizer: None):
    optimizer = make(fl.train_only(model, first).parameters())
    steps(model, optimizer)
    between(optimizer)
    plan = fl.train_only(model, second)
    return plan, optimizer


def snapshot(optimizer):
    """All that an optimizer holds: ids of its parameters, and a copy of its state and options."""
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return held, copy.deepcopy(options), {id(p): copy.deepcopy(s) for p, s in optimizer.state.items()}


def assert_untouched(optimizer, before):
    held, options, state = snapshot(optimizer)
    assert (held, options) == before[:2]
    assert state.keys() == before[2].keys()
    for key, was in before[2].items():
        assert str(state[key]) == str(was)


EMBED = {"embed.weight": fl.rows([7, 3, 0])}
