"""Only the rows that a step used change, each as if it were a parameter with an optimizer of its own.

The oracle is slow and obvious: every row has its own Parameter and its own torch.optim optimizer, which steps only when
the row is used.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl

V, D = 6, 3
PAIRS = {
    "sgd": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}),
    "dampening": (fl.optim.RowSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "maximize": True}),
    "adagrad": (fl.optim.RowAdagrad, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.3}),
    "adagrad, start": (fl.optim.RowAdagrad, torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1}),
    "adamw": (fl.optim.RowAdamW, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3}),
    "amsgrad": (fl.optim.RowAdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True, "maximize": True}),
}
EACH = pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS.values(), ids=PAIRS.keys())
OURS = {name: (ours, options) for name, (ours, _, options) in PAIRS.items()} | {
    "one sum per row": (fl.optim.RowAdagrad, {"lr": 0.1, "rowwise": True, "weight_decay": 0.3, "lr_decay": 0.1}),
    "one count": (fl.optim.RowAdamW, {"lr": 0.05, "step_per_row": False}),
}
OF_OURS = pytest.mark.parametrize(("make", "options"), OURS.values(), ids=OURS.keys())

IDS = st.lists(st.integers(0, V - 1), max_size=12)
BATCHES = st.lists(
    st.one_of(IDS, st.just([]), st.just(list(range(V))), st.just([2] * 5)),
    min_size=1,
    max_size=8,
)


def entries(ids, step, dtype=torch.float64, width=D):
    """Return one gradient for each id, seeded by the step, shape (len(ids), width)."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(len(ids), width, generator=generator, dtype=torch.float64).to(dtype)


def sparse(ids, values, rows=V):
    ids = torch.as_tensor(ids, dtype=torch.int64)[None]
    return torch.sparse_coo_tensor(ids, values, (rows, *values.shape[1:]), check_invariants=True)


def table(dtype=torch.float64):
    return torch.linspace(-2, 2, V * D, dtype=torch.float64).view(V, D).to(dtype)


def state_of(optimizer, parameter):
    """Return the state that has one entry per row."""
    return {name: value for name, value in optimizer.state[parameter].items() if value.shape[:1] == (V,)}


@settings(max_examples=25, deadline=None)
@given(batches=BATCHES)
@EACH
def test_any_batches_move_each_row_as_if_it_were_alone(ours, theirs, options, batches):
    weight = nn.Parameter(table())
    optimizer = ours([weight], **options)
    alone = [nn.Parameter(row.clone()) for row in table()]
    each = [theirs([row], **options) for row in alone]
    for step, ids in enumerate(batches):
        values = entries(ids, step)
        weight.grad = sparse(ids, values)
        optimizer.step()
        for row in set(ids):
            alone[row].grad = sum(value for at, value in zip(ids, values, strict=True) if at == row)
            each[row].step()
    expected = torch.stack([row.detach() for row in alone])
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(batches=BATCHES)
@OF_OURS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unused_rows_keep_every_bit_and_their_state(make, options, dtype, batches):
    weight = nn.Parameter(table(dtype))
    optimizer = make([weight], **options)
    for step, ids in enumerate(batches):
        before, state = weight.detach().clone(), {k: v.clone() for k, v in state_of(optimizer, weight).items()}
        weight.grad = sparse(ids, entries(ids, step, dtype) + 1)
        optimizer.step()
        idle = torch.ones(V, dtype=torch.bool)
        idle[list(set(ids))] = False
        assert torch.equal(weight.detach()[idle], before[idle])
        if dtype == torch.float32:  # in bfloat16 a small move may round to none
            assert (weight.detach()[~idle] != before[~idle]).any(dim=1).all()
        for name, value in state.items():
            assert torch.equal(optimizer.state[weight][name][idle], value[idle])


@OF_OURS
def test_a_sparse_gradient_of_every_row_is_a_dense_one(make, options):
    results = []
    for kind in ("dense", "coalesced", "shuffled", "in two parts"):
        weight = nn.Parameter(table())
        optimizer = make([weight], **options)
        for step in range(4):
            values = entries(range(V), step)
            order = torch.randperm(V, generator=torch.Generator().manual_seed(step))
            weight.grad = {
                "dense": values,
                "coalesced": sparse(range(V), values).coalesce(),
                "shuffled": sparse(order, values[order]),
                "in two parts": sparse([*order, *range(V)], torch.cat([values[order] * 0.25, values * 0.75])),
            }[kind]
            optimizer.step()
        results.append(weight.detach())
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-13, atol=1e-13)
    assert torch.equal(results[1], results[0])


@OF_OURS
def test_one_and_three_dimensional_parameters_accept_sparse_gradients(make, options):
    for shape in ((V,), (V, 2, 2)):
        weight = nn.Parameter(torch.ones(shape))
        optimizer = make([weight], **options)
        weight.grad = sparse([4, 1, 4], torch.ones(3, *shape[1:]))
        optimizer.step()
        moved = (weight.detach() != 1).flatten(1).any(1) if len(shape) > 1 else weight.detach() != 1
        assert moved.nonzero().flatten().tolist() == [1, 4]


@OF_OURS
def test_nan_in_one_row_stays_in_that_row(make, options):
    weight = nn.Parameter(table())
    optimizer = make([weight], **options)
    for _ in range(2):
        weight.grad = sparse([1, 3, 3], torch.tensor([[1.0] * D, [float("nan")] * D, [2.0] * D], dtype=torch.float64))
        optimizer.step()
    assert weight.detach()[3].isnan().all()
    assert weight.detach()[[0, 1, 2, 4, 5]].isfinite().all()
    assert (weight.detach()[1] != table()[1]).all()


@OF_OURS
def test_half_precision_duplicates_are_summed_in_float32(make, options):
    ids, values = [2] * 300, torch.full((300, D), 1.0, dtype=torch.bfloat16)  # in bfloat16 the sum sticks at 256
    moved = []
    for grad in (sparse(ids, values), sparse([2], torch.full((1, D), 300.0, dtype=torch.bfloat16))):
        weight = nn.Parameter(torch.zeros(V, D, dtype=torch.bfloat16))
        weight.grad = grad
        make([weight], **options).step()
        moved.append(weight.detach()[2])
    assert torch.equal(*moved)
    assert (moved[0] != 0).all()


def test_the_first_use_of_a_row_sets_its_momentum_to_the_gradient_undampened():
    weight = nn.Parameter(torch.zeros(V, 1))
    optimizer = fl.optim.RowSGD([weight], lr=1.0, momentum=0.5, dampening=0.75)
    for ids in ([0], [0, 1]):
        weight.grad = sparse(ids, torch.ones(len(ids), 1))
        optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"][:2].flatten().tolist() == [0.75, 1.0]  # 0.5 * 1 + 0.25 * 1
    assert weight.detach()[:2].flatten().tolist() == [-1.75, -1.0]


def test_bias_correction_counts_the_uses_of_the_row_or_all_steps():
    moves = {}
    for per_row in (True, False):
        weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
        optimizer = fl.optim.RowAdamW([weight], lr=1.0, weight_decay=0, eps=0, step_per_row=per_row)
        for step in range(1, 101):
            ids = [0, 1] if step == 100 else [0]
            weight.grad = sparse(ids, torch.ones(len(ids), 1, dtype=torch.float64), rows=2)
            optimizer.step()
        moves[per_row] = -weight.detach()[1].item()
        assert optimizer.state[weight]["step"].tolist() == ([100, 1] if per_row else 100)
    assert moves[True] == pytest.approx(1.0, rel=1e-12)
    too_young = (0.1 / (1 - 0.9**100)) / (0.001 / (1 - 0.999**100)) ** 0.5
    assert moves[False] == pytest.approx(too_young, rel=1e-12)


def test_an_empty_batch_counts_as_a_step_only_if_all_rows_share_a_count():
    weight = nn.Parameter(torch.zeros(1, 1))
    for per_row, count in ((True, [0]), (False, 1)):
        optimizer = fl.optim.RowAdamW([weight], step_per_row=per_row)
        weight.grad = sparse([], torch.ones(0, 1), rows=1)
        optimizer.step()
        assert optimizer.state[weight]["step"].tolist() == count
    assert weight.item() == 0


def test_a_step_on_a_huge_table_allocates_nothing_of_its_size():
    rows, width = 200_000, 8
    weight = nn.Parameter(torch.zeros(rows, width))
    for make, options in OURS.values():
        optimizer = make([weight], **options)
        sizes = []
        for _ in range(2):
            weight.grad = sparse([5, 7, 5], torch.ones(3, width), rows=rows)
            with torch.profiler.profile(profile_memory=True) as profile:
                optimizer.step()
            allocated = max((event.self_cpu_memory_usage for event in profile.key_averages()), default=0)
            sizes.append(allocated)
        assert sizes[0] >= rows * 4 or not optimizer.state[weight]  # the first step makes the state
        assert sizes[1] < 10_000
