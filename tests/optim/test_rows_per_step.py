"""Each step trains only the rows that the batch uses and the caller does not stop."""

import copy

import pytest
import torch
from torch import nn

import frostline as fl

V, D = 8, 3
OPTIMIZERS = {
    "sgd": lambda p: fl.optim.RowSGD(p, lr=0.1, weight_decay=0.5),
    "momentum": lambda p: fl.optim.RowSGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    "adagrad": lambda p: fl.optim.RowAdagrad(p, lr=0.1, weight_decay=0.5),
    "one sum per row": lambda p: fl.optim.RowAdagrad(p, lr=0.1, weight_decay=0.5, rowwise=True),
    "adamw": lambda p: fl.optim.RowAdamW(p, lr=0.1, weight_decay=0.5),
    "one count": lambda p: fl.optim.RowAdamW(p, lr=0.1, weight_decay=0.5, step_per_row=False),
}
EACH = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
TABLES = pytest.mark.parametrize("partial", [False, True], ids=["sparse table", "partial table"])


def a_table(partial, learn=range(V), padding_idx=None):
    """Return a table and its parameters that learn: all rows of a plain table, the rows `learn` of a partial one."""
    torch.manual_seed(0)
    embedding = nn.Embedding(V, D, padding_idx, sparse=True)
    if not partial:
        return embedding, list(embedding.parameters())
    return embedding, fl.train_only(embedding, {"weight": fl.rows(learn)}).parameters()


def values(embedding):
    return embedding.weight.detach().clone()


def moved(before, embedding):
    return (values(embedding) != before).any(dim=1).nonzero().flatten().tolist()


def loss_of(vectors):
    torch.manual_seed(1)
    return (vectors * torch.randn(vectors.shape)).sum()


@TABLES
def test_a_lookup_gives_a_gradient_of_the_rows_looked_up_only(partial):
    embedding, (learned,) = a_table(partial, learn=[1, 2, 5, 6])
    loss_of(embedding(torch.tensor([[5, 1, 5], [3, 1, 5]]))).backward()
    assert learned.grad.is_sparse
    named = learned.grad._indices()[0].tolist()
    assert named == ([2, 0, 2, 0, 2] if partial else [5, 1, 5, 3, 1, 5])  # slots among the learned rows, or ids


@EACH
@TABLES
def test_the_rows_that_the_caller_stops_keep_every_bit_in_that_step_only(make, partial):
    embedding, learned = a_table(partial)
    optimizer = make(learned)
    ids = torch.tensor([0, 3, 5, 3, 6])
    for picked in ({3, 6}, {0, 3}, set(), {5}):
        before, state = values(embedding), copy.deepcopy(dict(optimizer.state[learned[0]]))
        stopped = torch.tensor([int(i) not in picked for i in ids])
        optimizer.zero_grad()
        loss_of(fl.stop_gradient(embedding(ids), where=stopped[:, None])).backward()
        optimizer.step()
        assert moved(before, embedding) == sorted(picked)
        idle = torch.tensor([i not in picked for i in range(V)])
        for name, old in state.items():
            now = optimizer.state[learned[0]][name]
            assert not old.dim() or torch.equal(now[idle], old[idle])


@EACH
@TABLES
def test_stopped_positions_give_exact_zeros_even_for_infinite_gradients(make, partial):
    embedding, (learned,) = a_table(partial)
    vectors = fl.stop_gradient(embedding(torch.tensor([2, 4])), where=torch.tensor([[True], [False]]))
    before = values(embedding)
    optimizer = make([learned])
    vectors.backward(torch.tensor([[float("inf")] * D, [1.0] * D]))
    grad = learned.grad.to_dense()
    assert torch.equal(grad[2], torch.zeros(D))
    optimizer.step()
    assert moved(before, embedding) == [4]
    assert values(embedding).isfinite().all()


@EACH
@TABLES
def test_a_row_with_one_stopped_position_learns_from_the_others(make, partial):
    results = []
    for ids, stopped in (([4, 4, 2], [True, False, False]), ([4, 2], [False, False])):
        embedding, learned = a_table(partial)
        vectors = fl.stop_gradient(embedding(torch.tensor(ids)), where=torch.tensor(stopped)[:, None])
        (vectors[-2:] * torch.tensor([[1.0], [2.0]])).sum().backward()
        make(learned).step()
        results.append(values(embedding))
    assert torch.equal(*results)


@EACH
def test_a_row_stopped_in_one_column_learns_in_the_others(make):
    embedding, learned = a_table(partial=False)
    before = values(embedding)
    make(learned)
    columns = torch.tensor([True, False, False])
    optimizer = make(learned)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0  # decay is the row's: it would move the stopped entry of a row in use
    loss_of(fl.stop_gradient(embedding(torch.tensor([4])), where=columns)).backward()
    optimizer.step()
    assert (values(embedding) != before).nonzero().tolist() == [[4, 1], [4, 2]]


@EACH
@TABLES
def test_duplicate_ids_sum(make, partial):
    results = []
    for ids, weights in (([4, 4, 2], [1.0, 2.0, 5.0]), ([2, 4], [5.0, 3.0])):
        embedding, learned = a_table(partial)
        (embedding(torch.tensor(ids)) * torch.tensor(weights)[:, None]).sum().backward()
        make(learned).step()
        results.append(values(embedding))
    assert torch.equal(*results)


@EACH
@TABLES
def test_the_padding_row_never_moves(make, partial):
    embedding, learned = a_table(partial, learn=[0, 1, 5], padding_idx=3)
    before = values(embedding)
    optimizer = make(learned)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(embedding(torch.tensor([3, 5, 3]))).backward()
        optimizer.step()
    assert moved(before, embedding) == [5]


@pytest.mark.filterwarnings("ignore:.*is dense, so all its")
@EACH
def test_a_dense_gradient_uses_every_row_also_those_of_zero_gradient(make):
    weight = nn.Parameter(torch.ones(V, D))
    weight.grad = torch.zeros(V, D)
    weight.grad[2] = 1.0
    make([weight]).step()
    assert (weight != 1).all()  # decay
