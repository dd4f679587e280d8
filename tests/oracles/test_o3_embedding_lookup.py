"""Rows looked up by the step, run by TensorFlow under five optimizers, against the row optimizers and torch's own.

loss = mean((tanh(x[ids] @ w) - t)^2), with a table x of shape (10, 3) and six ids a step, some of them repeated; rows
4, 6 and 9 are never used. TensorFlow rounds hyper-parameters to float32, also for float64 tables, and so do we here;
not what its graph makes in float64, such as Adagrad's first accumulator.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

# torch's own optimizers leave the checks of sparse tensors to their default.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:.*is dense, so all its"),
]

DATA = dict(np.load(Path(__file__).parent / "data" / "o3_embedding_lookup.npz"))
IDS = torch.tensor(DATA["sched"]).long()  # (6 steps, 6 ids)
USED = torch.stack([torch.zeros(10, dtype=torch.bool).index_fill(0, ids, True) for ids in IDS])  # (6, 10)
ROWS_THAT_LEARN = [0, 1, 2, 3, 5, 7, 8, 9]  # 9 is never used
TABLES = ["sparse table", "partial table"]


def rounded(value):
    return float(np.float32(value))


LR, MOMENTUM = rounded(0.1), rounded(0.9)
ADAM_LR, BETAS, ADAM_EPS = rounded(0.01), (rounded(0.9), rounded(0.999)), rounded(1e-8)
ROW_OPTIMIZERS = {
    "sgd": lambda parameters: fl.optim.RowSGD(parameters, lr=LR),
    "momentum": lambda parameters: fl.optim.RowSGD(parameters, lr=LR, momentum=MOMENTUM),
    "adagrad": lambda parameters: fl.optim.RowAdagrad(parameters, lr=LR, initial_accumulator_value=0.1, eps=0.0),
}
SLOTS = {"momentum": {"momentum_buffer": "momentum"}, "adagrad": {"sum": "accumulator"}, "sgd": {}}
row_optimizers = pytest.mark.parametrize("name", ROW_OPTIMIZERS)


class AloneRMSProp:
    """TensorFlow's sparse RMSProp, slow and obvious: each row has torch's RMSprop to itself, stepped when it is used.

    The running square starts at 1. Epsilon (1e-10) stands under TensorFlow's root: half of it beside the root is the
    same near 1.
    """

    def __init__(self, parameters):
        (self.weight,) = parameters
        self.rows = [row.detach().clone().requires_grad_() for row in self.weight]
        options = {"lr": rounded(0.01), "alpha": rounded(0.9), "eps": 0.5e-10}
        self.each = [torch.optim.RMSprop([row], **options) for row in self.rows]
        for row, optimizer in zip(self.rows, self.each, strict=True):
            optimizer.state[row] = {"step": torch.tensor(0.0), "square_avg": torch.ones_like(row)}

    def step(self):
        grad = self.weight.grad.coalesce()
        for row, values in zip(grad.indices()[0].tolist(), grad.values(), strict=True):
            self.rows[row].grad = values
            self.each[row].step()
            self.weight.data[row] = self.rows[row].detach()


class AdamLikeTensorFlow:
    """An Adam whose rate and epsilon are set anew at each step: TensorFlow adds epsilon before the bias correction."""

    def __init__(self, make, parameters):
        self.inner, self.steps = make(parameters, betas=BETAS), 0
        self.powers = [np.float32(0.9), np.float32(0.999)]

    def step(self):
        self.steps += 1
        (group,) = self.inner.param_groups
        ours = [1 - beta**self.steps for beta in BETAS]
        theirs = [1 - float(power) for power in self.powers]
        group["lr"] = ADAM_LR * math.sqrt(theirs[1]) / theirs[0] * ours[0] / math.sqrt(ours[1])
        hat = isinstance(self.inner, torch.optim.SparseAdam)  # it adds epsilon where TensorFlow does
        group["eps"] = ADAM_EPS if hat else ADAM_EPS / math.sqrt(ours[1])
        self.powers = [power * np.float32(beta) for power, beta in zip(self.powers, (0.9, 0.999), strict=True)]
        self.inner.step()


def train(make, where="sparse table", scale=None, dtype=torch.float64):
    """Six steps; return the table after each, the one before first, the losses, and what made the steps."""
    embedding = nn.Embedding(10, 3, sparse=where != "dense table", _weight=torch.tensor(DATA["x_init"]).to(dtype))
    w, targets = torch.tensor(DATA["w"], dtype=dtype), torch.tensor(DATA["t"], dtype=dtype)
    learned = list(embedding.parameters())
    if where == "partial table":
        learned = fl.train_only(embedding, {"weight": fl.rows(ROWS_THAT_LEARN)}).parameters()
    optimizer = make(learned)
    tables, losses = [embedding.weight.detach().clone()], []
    for ids, target in zip(IDS, targets, strict=True):
        vectors = embedding(ids)
        if scale is not None:
            vectors = fl.scale_gradient(vectors, scale)
        loss = F.mse_loss((vectors @ w).tanh(), target)
        embedding.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        tables.append(embedding.weight.detach().clone())
    return torch.stack(tables), torch.tensor(losses, dtype=dtype), (learned[0], optimizer)


def reference(name):
    return torch.tensor(DATA[name])


def changed(tables):
    """Which rows each step changed, shape (6, 10)."""
    return (tables[1:] != tables[:-1]).any(dim=2)


@row_optimizers
@pytest.mark.parametrize("where", TABLES)
def test_the_row_optimizers_give_the_tables_and_losses_of_the_reference(name, where):
    tables, losses, _ = train(ROW_OPTIMIZERS[name], where)
    torch.testing.assert_close(tables, reference(f"f64_{name}_x"), rtol=0, atol=1e-12)
    torch.testing.assert_close(losses, reference(f"f64_{name}_loss"), rtol=0, atol=1e-12)
    tables, losses, _ = train(ROW_OPTIMIZERS[name], where, dtype=torch.float32)
    torch.testing.assert_close(tables[-1], reference(f"f32_{name}_x"), rtol=0, atol=2e-6)
    torch.testing.assert_close(losses, reference(f"f32_{name}_loss"), rtol=0, atol=2e-6)


@row_optimizers
def test_momentum_and_sums_are_those_of_the_reference(name):
    _, _, (weight, optimizer) = train(ROW_OPTIMIZERS[name])
    state = optimizer.state[weight]
    assert state.keys() == SLOTS[name].keys()
    for ours, theirs in SLOTS[name].items():
        torch.testing.assert_close(state[ours], reference(f"f64_{name}_slot_{theirs}"), rtol=0, atol=1e-12)


@row_optimizers
@pytest.mark.parametrize("where", TABLES)
def test_only_rows_in_use_change_as_in_the_reference(name, where):
    tables, _, _ = train(ROW_OPTIMIZERS[name], where)
    assert torch.equal(changed(tables), USED)
    assert torch.equal(reference(f"f64_{name}_changed"), USED)


def test_rmsprop_changes_only_rows_in_use_each_as_if_it_were_alone():
    tables, _, _ = train(AloneRMSProp)
    torch.testing.assert_close(tables, reference("f64_rmsprop_x"), rtol=0, atol=1e-10)
    assert torch.equal(changed(tables), USED)
    assert torch.equal(reference("f64_rmsprop_changed"), USED)


def test_tensorflows_adam_goes_on_moving_every_row_that_it_ever_moved():
    dense = train(lambda p: AdamLikeTensorFlow(torch.optim.Adam, p), "dense table")[0]
    torch.testing.assert_close(dense, reference("f64_adam_x"), rtol=0, atol=1e-12)
    ever_used = USED.cumsum(0) > 0
    assert torch.equal(reference("f64_adam_changed"), ever_used)
    assert torch.equal(changed(dense), ever_used)
    assert not torch.equal(ever_used, USED)


@pytest.mark.parametrize("where", TABLES)
def test_row_adamw_leaves_rows_out_of_use_alone_as_sparse_adam_does(where):
    def row_adamw(parameters, betas):
        return fl.optim.RowAdamW(parameters, betas=betas, weight_decay=0, step_per_row=False)

    ours = train(lambda p: AdamLikeTensorFlow(row_adamw, p), where)[0]
    sparse_adam = train(lambda p: AdamLikeTensorFlow(torch.optim.SparseAdam, p))[0]
    assert torch.equal(changed(ours), USED)
    torch.testing.assert_close(ours, sparse_adam, rtol=0, atol=1e-9)  # they differ by where epsilon stands
    theirs = reference("f64_adam_x")
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-12)  # the first step is the same
    assert (ours - theirs).abs().max().item() == pytest.approx(2.1e-2, rel=0.03)


@pytest.mark.parametrize("where", ["dense table", "sparse table"])
def test_torchs_own_momentum_moves_rows_out_of_use_and_the_row_optimizers_does_not(where):
    tables = train(lambda p: torch.optim.SGD(p, lr=LR, momentum=MOMENTUM), where)[0]
    torch.testing.assert_close(tables[-1], reference("f64_momentum_densified_x"), rtol=0, atol=1e-12)
    assert (tables - reference("f64_momentum_x")).abs().max().item() == pytest.approx(9.9e-2, rel=0.01)
    assert torch.equal(changed(tables), USED.cumsum(0) > 0)


def test_torchs_own_rmsprop_leaves_rows_out_of_use_but_lets_their_state_decay():
    def rmsprop(parameters):
        optimizer = torch.optim.RMSprop(parameters, lr=rounded(0.01), alpha=rounded(0.9), eps=0.5e-10)
        for weight in parameters:
            optimizer.state[weight] = {"step": torch.tensor(0.0), "square_avg": torch.ones_like(weight)}
        return optimizer

    tables = train(rmsprop, "dense table")[0]
    assert torch.equal(changed(tables), USED)
    torch.testing.assert_close(tables[-1], reference("f64_rmsprop_densified_x"), rtol=0, atol=1e-10)
    assert (tables - reference("f64_rmsprop_x")).abs().max().item() == pytest.approx(1.1e-3, rel=0.05)


def test_the_first_gradient_keeps_its_duplicates_and_they_sum():
    embedding = nn.Embedding(10, 3, sparse=True, _weight=torch.tensor(DATA["x_init"]))
    w, target = torch.tensor(DATA["w"]), torch.tensor(DATA["t"][0])
    F.mse_loss((embedding(IDS[0]) @ w).tanh(), target).backward()
    grad = embedding.weight.grad
    assert torch.equal(grad._indices()[0], reference("dup_f64_indices").long())
    torch.testing.assert_close(grad._values(), reference("dup_f64_values"), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad.to_dense(), reference("dup_f64_dense"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("where", ["sparse table", "dense table"])
def test_the_first_reference_program_ends_at_its_values(where):
    embedding = nn.Embedding(10, 3, sparse=where == "sparse table", _weight=torch.tensor(DATA["x_init"]).float())
    optimizer = fl.optim.RowSGD(embedding.parameters(), lr=0.01)
    hidden = (embedding(torch.tensor(DATA["seed_inds"])) @ torch.tensor(DATA["w"]).float()).tanh()
    loss = F.mse_loss(hidden, torch.tensor(DATA["seed_t"]).float())
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(loss.detach(), reference("seed_loss"), rtol=0, atol=2e-6)
    torch.testing.assert_close(embedding.weight.detach(), reference("seed_x_after"), rtol=0, atol=2e-6)


# how far a scale of 0.1 lets the table move, against none
SCALED = {"sgd": 0.102, "momentum": 0.106, "adagrad": 0.137}


@row_optimizers
@pytest.mark.parametrize("where", ["sparse table", "partial table", "dense table"])
def test_a_scaled_gradient_moves_sparse_and_dense_tables_alike(name, where):
    scaled = train(ROW_OPTIMIZERS[name], where, scale=0.1)[0]
    if where == "dense table" and name == "momentum":  # a dense gradient of zero still moves by momentum
        assert (scaled[-1] - reference("scale_f64_momentum_x")).abs().max() > 1e-3
        return
    torch.testing.assert_close(scaled[-1], reference(f"scale_f64_{name}_x"), rtol=0, atol=1e-12)
    whole = train(ROW_OPTIMIZERS[name], where)[0]
    moved, moved_whole = ((tables[-1] - tables[0]).abs().sum() for tables in (scaled, whole))
    assert (moved / moved_whole).item() == pytest.approx(SCALED[name], abs=5e-4)


def test_a_scaled_gradient_changes_nothing_under_adam():
    scaled = train(lambda p: AdamLikeTensorFlow(torch.optim.Adam, p), "dense table", scale=0.1)[0]
    torch.testing.assert_close(scaled[-1], reference("scale_f64_adam_x"), rtol=0, atol=1e-12)
    for make in (
        lambda p: AdamLikeTensorFlow(torch.optim.Adam, p),
        lambda p: fl.optim.RowAdamW(p, lr=0.01, weight_decay=0),
    ):
        scaled, whole = (train(make, scale=scale, where="dense table")[0] for scale in (0.1, None))
        moved, moved_whole = ((tables[-1] - tables[0]).abs().sum() for tables in (scaled, whole))
        assert (moved / moved_whole).item() == pytest.approx(0.9999, abs=2e-4)
