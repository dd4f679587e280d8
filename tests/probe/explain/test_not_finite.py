"""NaN and Inf that the forward makes: the line that makes them is named, not where they arrive."""

import pytest
import torch
from torch import nn

import frostline as fl

from .cases import line_of


def two(x, between):
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), "last": nn.Linear(4, 1)})

    def loss_fn():
        h = between(model["first"](x))
        return nn.functional.mse_loss(model["last"](model["second"](h).relu()), torch.zeros(len(x), 1))

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)


def logarithm(h):
    return torch.log(h - 100)  # <- logarithm


def quotient(h):
    h = h * 0
    h = h / h  # <- quotient
    return h + 1


def overflow(h):
    h = h.clone()
    h.mul_(1e38).mul_(1e38)  # <- overflow
    return h


def masked(h):
    hidden = torch.eye(len(h), dtype=torch.bool)
    weights = (h @ h.T).masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ h - 100).sqrt()  # <- masked


def compute(way, model, loss_fn, optimizer):
    if way == "explain":
        return fl.explain(model, loss_fn, optimizer)
    with fl.watching(model, optimizer) as seen:
        for _ in range(2):
            loss_fn().backward()
        optimizer.step()
    return seen.explanation


@pytest.mark.parametrize("way", ["explain", "watching"])
@pytest.mark.parametrize("between", [logarithm, quotient, overflow, masked], ids=lambda function: function.__name__)
def test_the_line_that_makes_them_is_named(between, way):
    explanation = compute(way, *two(torch.randn(8, 4), between))
    line = line_of(__file__, between.__name__)
    for found in explanation.findings:
        assert (found.verdict, found.where.rpartition(":")[2]) == ("not finite", str(line))
        assert found.reason.startswith("the loss holds NaN or Inf from ")


@pytest.mark.parametrize("way", ["explain", "watching"])
def test_a_mask_of_minus_infinity_in_a_healthy_model_is_no_fault(way):
    def attention(h):
        return (h @ h.T).masked_fill(torch.eye(8, dtype=torch.bool), float("-inf")).softmax(-1) @ h

    assert compute(way, *two(torch.randn(8, 4), attention)).alarms == []


def test_nan_in_the_data_is_named_where_it_comes_in():
    x = torch.randn(8, 4)
    x[3, 2] = float("nan")
    model, _, optimizer = two(x, None)

    def loss_fn():
        h = model["first"](x)  # <- comes in
        return model["last"](model["second"](h)).mean()

    found = fl.explain(model, loss_fn, optimizer).findings[0]
    assert found.where.endswith(f":{line_of(__file__, 'comes in')}")
