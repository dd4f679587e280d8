"""Plain torch takes many rows a block at a time, and nothing shows it."""

import pytest
import torch

from frostline.optim import reference as plain

V, N, D = 6000, 5000, 64  # N rows of 256 bytes are three blocks


def state(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


UPDATES = {
    "sgd": (
        plain.sgd_,
        lambda: [state(V, D), torch.arange(V) % 2 == 0],
        {"momentum": 0.9, "dampening": 0.5, "nesterov": False},
    ),
    "adagrad": (
        plain.adagrad_,
        lambda: [state(V, D), torch.arange(V, dtype=torch.int32)],
        {"lr_decay": 0.1, "eps": 1e-8},
    ),
    "row-wise adagrad": (plain.adagrad_, lambda: [state(V), None], {"lr_decay": 0.0, "eps": 1e-8}),
    "adamw": (
        plain.adamw_,
        lambda: [state(V, D), state(V, D), state(V, D), torch.arange(V, dtype=torch.int32) % 7],
        {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    ),
    "adamw, one count": (
        plain.adamw_,
        lambda: [state(V, D), state(V, D), None, torch.tensor(3, dtype=torch.int32)],
        {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_blocks_leave_the_bits_that_the_whole_leaves(name):
    update, make_state, options = UPDATES[name]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(V, generator=generator)[:N].sort().values
    grad, start = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator)
    results = []
    for step in (update, update.__wrapped__):
        table, its_state = start.clone(), make_state()
        step(table, ids, grad, *its_state, lr=0.1, weight_decay=0.1, maximize=False, **options)
        results.append([table, *(tensor for tensor in its_state if tensor is not None)])
    for blocks, whole in zip(*results, strict=True):
        assert torch.equal(blocks, whole)
    used = torch.zeros(V, dtype=torch.bool).index_fill_(0, ids, True)
    assert torch.equal((results[0][0] != start).any(1), used)
