"""A row optimizer that gets the dense gradient of a lookup, and so moves every row, says so once, with the way out."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

IDS = torch.tensor([1, 4, 1])
MOVE = {
    "RowAdamW": lambda parameters: fl.optim.RowAdamW(parameters, lr=0.1),
    "RowSGD, momentum": lambda parameters: fl.optim.RowSGD(parameters, lr=0.1, momentum=0.9),
    "RowSGD, decay": lambda parameters: fl.optim.RowSGD(parameters, lr=0.1, weight_decay=0.1),
    "RowAdagrad, decay": lambda parameters: fl.optim.RowAdagrad(parameters, lr=0.1, weight_decay=0.1),
}
STAY = {
    "RowSGD": lambda parameters: fl.optim.RowSGD(parameters, lr=0.1),
    "RowAdagrad": lambda parameters: fl.optim.RowAdagrad(parameters, lr=0.1),
}


def bare_parameter():
    x = nn.Parameter(torch.ones(8, 3))
    return x, lambda: x[IDS]


def dense_embedding():
    table = nn.Embedding(8, 3)
    return table.weight, lambda: table(IDS)


def sparse_lookup():
    x = nn.Parameter(torch.ones(8, 3))
    return x, lambda: F.embedding(IDS, x, sparse=True)


def sparse_embedding():
    table = nn.Embedding(8, 3, sparse=True)
    return table.weight, lambda: table(IDS)


def steps(x, look_up, make, count=3):
    optimizer = make([x])
    for _ in range(count):
        optimizer.zero_grad()
        look_up().square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("make", MOVE.values(), ids=MOVE)
@pytest.mark.parametrize("lookup", [bare_parameter, dense_embedding])
def test_it_is_said_once_for_each_parameter(make, lookup):
    x, look_up = lookup()
    with pytest.warns(UserWarning, match="also the 6 whose gradient is zero") as said:
        steps(x, look_up, make)
    (warning,) = said
    for way_out in ("F.embedding(ids, x, sparse=True)", "nn.Embedding(sparse=True)", "fl.rows"):
        assert way_out in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("make", MOVE.values(), ids=MOVE)
@pytest.mark.parametrize("lookup", [sparse_lookup, sparse_embedding])
def test_the_ways_out_move_only_the_rows_in_use_and_say_nothing(make, lookup):
    x, look_up = lookup()
    before = x.detach().clone()
    steps(x, look_up, make)
    assert (x != before).any(1).nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize("make", STAY.values(), ids=STAY)
def test_nothing_is_said_where_rows_without_a_gradient_keep_every_bit(make):
    x, look_up = bare_parameter()
    before = x.detach().clone()
    steps(x, look_up, make)
    assert (x != before).any(1).nonzero().flatten().tolist() == [1, 4]


def test_nothing_is_said_of_rows_that_a_plan_names():
    table = nn.Embedding(8, 3)
    plan = fl.train_only(table, {"weight": fl.rows([1, 4])})
    before = table.weight.detach().clone()
    steps(plan.parameters()[0], lambda: table(IDS), MOVE["RowAdamW"])
    assert (table.weight.detach() != before).any(1).nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize(
    "grad", [torch.zeros(8, 3), torch.eye(8, 3) + 1, torch.eye(8)[0], torch.full((8, 3), torch.nan)]
)
def test_nothing_is_said_of_gradients_that_are_not_those_of_a_lookup(grad):
    x = nn.Parameter(torch.ones(grad.shape))
    optimizer = MOVE["RowAdamW"]([x])
    x.grad = grad
    optimizer.step()


def test_where_the_warning_is_an_error_nothing_has_moved():
    x, look_up = bare_parameter()
    before = x.detach().clone()
    optimizer = MOVE["RowAdamW"]([x])
    look_up().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="is dense"):
            optimizer.step()
    assert torch.equal(x, before)
    assert not optimizer.state
    optimizer.step()
    assert not torch.equal(x, before)


def test_a_copied_optimizer_steps_and_says_it_again():
    x, look_up = bare_parameter()
    with pytest.warns(UserWarning, match="is dense"):
        optimizer = steps(x, look_up, MOVE["RowAdamW"])
    again = copy.deepcopy(optimizer)
    again.param_groups[0]["params"][0].grad = x.grad.clone()
    with pytest.warns(UserWarning, match="is dense"):
        again.step()
