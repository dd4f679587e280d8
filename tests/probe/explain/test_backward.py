"""What the backward gave: gradients that are zero, not finite, too small, of every dtype."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

from .cases import verdicts


def test_nan_inf_zero_and_rounding_are_told_apart():
    scale = nn.ParameterDict(
        {
            "nan": nn.Parameter(torch.zeros(2)),
            "zero": nn.Parameter(torch.ones(2)),
            "rounds": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
            "learns": nn.Parameter(torch.ones(2)),
        }
    )

    def loss_fn():
        nan = torch.where(scale["nan"] > 0, scale["nan"].sqrt(), 0.0)  # d sqrt(0) = Inf, times 0
        return (nan + scale["zero"] * 0 + scale["rounds"].float() + scale["learns"] ** 2).sum()

    found = fl.explain(scale, loss_fn, torch.optim.AdamW(scale.parameters(), lr=1e-4, weight_decay=0)).to_dict()
    assert {name: finding["verdict"] for name, finding in found.items()} == {
        "nan": "not finite",
        "zero": "zero gradient",
        "rounds": "rounds away",
        "learns": "learns",
    }
    assert found["nan"]["reason"].startswith("its gradient holds NaN or Inf from sqrt: nan = torch.where(")
    assert found["rounds"]["reason"] == "the step changes no bit: it is below bfloat16's resolution"


@pytest.mark.parametrize("kind", [None, torch.optim.Adam, torch.optim.AdamW])
def test_behind_a_factor_that_starts_at_zero_a_parameter_learns_and_behind_two_it_is_dead(kind):
    torch.manual_seed(0)
    model = nn.ParameterDict({name: nn.Parameter(torch.randn(3, 3)) for name in ("a", "b", "c", "d")})
    with torch.no_grad():
        for name in ("b", "c", "d"):
            model[name].zero_()
    x = torch.randn(5, 3)

    def loss_fn():
        return (x @ model["a"] @ model["b"] + x @ model["c"] @ model["d"]).sub(1).square().mean()

    optimizer = kind(model.parameters()) if kind else None
    found = fl.explain(model, loss_fn, optimizer).to_dict()
    assert {name: (finding["verdict"], finding["notes"]) for name, finding in found.items()} == {
        "a": ("learns", ["zero gradient"]),
        "b": ("learns", []),
        "c": ("zero gradient", []),
        "d": ("zero gradient", []),
    }
    assert found["a"]["reason"] == "its gradient is zero now, but not after a step"
    if optimizer:
        assert not optimizer.state


def test_a_loss_that_is_not_finite_is_reported():
    model, x = nn.Linear(4, 3), torch.randn(8, 4)
    labels = torch.full((8,), -100)
    found = fl.explain(model, lambda: F.cross_entropy(model(x), labels)).to_dict()
    assert found["weight"]["verdict"] == "not finite"
    assert found["weight"]["reason"].startswith("the loss holds NaN or Inf from cross_entropy: ")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_that_learns_is_understood(dtype):
    weight = nn.ParameterList([nn.Parameter(torch.ones(3, dtype=dtype)), nn.Parameter(torch.ones(3, dtype=dtype))])
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)
    assert verdicts(weight, lambda: (weight[0] * (1 + 0 * weight[1])).abs().sum(), optimizer) == {
        "0": "learns",
        "1": "zero gradient",
    }


def test_sparse_gradients_are_understood():
    embed = nn.Embedding(5, 2, sparse=True)
    ids = torch.tensor([1, 3])
    assert verdicts(embed, lambda: embed(ids).sum(), torch.optim.SparseAdam(embed.parameters())) == {"weight": "learns"}
    assert verdicts(embed, lambda: embed(ids).sum() * 0, torch.optim.SparseAdam(embed.parameters())) == {
        "weight": "zero gradient"
    }
