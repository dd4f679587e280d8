"""Drawn chains of views, ids and products of tensors of one to four dimensions, against a plain tensor."""

import os
import random

import pytest
import torch

import frostline as fl

from .cases import Pair

DRAWN = 1000 if os.environ.get("FROSTLINE_SOAK") else 80
STEPS = {
    "transpose": lambda v, draw: v.transpose(draw.randrange(v.ndim), draw.randrange(v.ndim)),
    "row": lambda v, draw: v[draw.randrange(v.shape[0])],
    "rows": lambda v, draw: v[(start := draw.randrange(v.shape[0])) : start + draw.randint(0, 4) : draw.randint(1, 2)],
    "flatten": lambda v, draw: v.flatten(),
    "permute": lambda v, draw: v.permute(draw.sample(range(v.ndim), v.ndim)),
    "unsqueeze": lambda v, draw: v.unsqueeze(draw.randint(0, v.ndim)),
    "expand": lambda v, draw: v.expand(2, *v.shape) if v.ndim < 5 else v,
    "unfold": lambda v, draw: v.unfold(0, 2, 1) if v.shape[0] >= 2 else v,
    "last column": lambda v, draw: v[..., -1],
    "chunk": lambda v, draw: draw.choice(v.chunk(2)),
    "reshape": lambda v, draw: v.reshape(1, -1),
    "diagonal": lambda v, draw: v.diagonal() if v.ndim > 1 else v,
    "ids": lambda v, draw: v[torch.tensor(draw.choices(range(v.shape[0]), k=3))],
    "conjugate": lambda v, draw: v.conj(),
}
ENDS = [
    lambda v, c: (v * c).abs().square().sum(),
    lambda v, c: (v * v * c).sum().real,
    lambda v, c: (v * c).sum().real,
    lambda v, c: (v.reshape(-1, 1).T @ v.reshape(-1, 1)).sum().real,
]


def used(weight, seed):
    """A number made of some drawn views of `weight`."""
    draw, total = random.Random(seed), 0
    for _ in range(draw.randint(1, 4)):
        view = weight
        for step in draw.choices(list(STEPS.values()), k=draw.randint(1, 4)):
            if view.ndim and view.numel():
                view = step(view, draw)
        factors = torch.linspace(0.5, 2, view.numel(), dtype=torch.float64).view(view.shape)
        total = total + draw.choice(ENDS)(view, factors)
    return total


@pytest.mark.parametrize("seed", range(DRAWN))
def test_drawn_uses_have_the_bits_and_the_masked_gradient_of_a_plain_tensor(seed):
    draw = random.Random(-seed)
    shape = draw.choice([(12,), (7, 5), (6, 4, 3), (4, 3, 2, 5)])
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < draw.choice([0.05, 0.3, 1.0])
    mask.view(-1)[draw.randrange(mask.numel())] = True
    rows = draw.sample(range(shape[0]), draw.randint(1, shape[0]))
    dtype = torch.float64 if seed % 5 else torch.complex64
    pair = Pair(fl.rows(rows) if seed % 2 else fl.entries(mask), shape, dtype)
    losses = [used(weight, seed) for weight, _ in pair.both()]
    assert torch.equal(*losses)
    if losses[1].requires_grad:
        mine, dense = (torch.autograd.grad(loss, leaf)[0] for loss, (_, leaf) in zip(losses, pair.both(), strict=True))
        pair.close(mine, pair.masked(dense))


def test_most_drawn_uses_reach_what_learns():
    reached = 0
    for seed in range(40):
        pair = Pair(fl.rows([0, 2, 3]), (7, 5))
        loss = used(pair.weight, seed)
        reached += bool(torch.autograd.grad(loss, pair.learned)[0].any())
    assert reached > 20
