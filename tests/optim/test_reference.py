"""The arithmetic in plain torch: correctly rounded, and the same bits for blocks of rows."""

import math

import pytest
import torch

from frostline.optim import reference

V, N, D = 6000, 5000, 64  # N rows of 256 bytes are three blocks


def state(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


UPDATES = {
    "sgd": (
        reference.sgd_,
        lambda: [state(V, D), torch.arange(V) % 2 == 0],
        {"momentum": 0.9, "dampening": 0.5, "nesterov": False},
    ),
    "adagrad": (
        reference.adagrad_,
        lambda: [state(V, D), torch.arange(V, dtype=torch.int32)],
        {"lr_decay": 0.1, "eps": 1e-8},
    ),
    "row-wise adagrad": (reference.adagrad_, lambda: [state(V), None], {"lr_decay": 0.0, "eps": 1e-8}),
    "adamw": (
        reference.adamw_,
        lambda: [state(V, D), state(V, D), state(V, D), torch.arange(V, dtype=torch.int32) % 7],
        {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    ),
    "adamw, one count": (
        reference.adamw_,
        lambda: [state(V, D), state(V, D), None, torch.tensor(3, dtype=torch.int32)],
        {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_blocks_give_the_same_bits_as_one_update_of_all_rows(name):
    update, make_state, options = UPDATES[name]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(V, generator=generator)[:N].sort().values
    grad, start = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator)
    results = []
    for step in (update, update.__wrapped__):
        table, state_tensors = start.clone(), make_state()
        step(table, ids, grad, *state_tensors, lr=0.1, weight_decay=0.1, maximize=False, **options)
        results.append([table, *(tensor for tensor in state_tensors if tensor is not None)])
    for in_blocks, at_once in zip(*results, strict=True):
        assert torch.equal(in_blocks, at_once)
    used = torch.zeros(V, dtype=torch.bool).index_fill_(0, ids, True)
    assert torch.equal((results[0][0] != start).any(1), used)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_roots_are_correctly_rounded_at_every_index(dtype):
    x = torch.rand(2000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([math.sqrt(value) for value in x.tolist()], dtype=torch.float64).to(dtype)
    assert torch.equal(reference.sqrt(x), expected)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.99, 0.99999)])
def test_corrections_do_not_depend_on_which_other_rows_a_step_uses(betas):
    t = torch.tensor([1.0, 2, 3, 7, 100, 36_000, 37_000, 40_000, 2_000_000], dtype=torch.float64)
    together = reference.bias_corrections(t, 0.1, *betas)
    for i, count in enumerate(t.tolist()):
        alone = reference.bias_corrections(t[i : i + 1], 0.1, *betas)
        assert [x[i].item() for x in together] == [x.item() for x in alone]
        assert together[0][i].item() == pytest.approx(0.1 / (1 - betas[0] ** count), rel=1e-15)
        assert together[1][i].item() == pytest.approx(math.sqrt(1 - betas[1] ** count), rel=1e-15)
