"""The line at which a gradient becomes exactly zero, NaN or Inf on its way back from the loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

from .cases import line_of


class TimesZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0


class Masked(nn.Module):
    def forward(self, h):
        h = h - 50
        return F.relu(h)


VANISHES = {
    "round": lambda h: torch.round(h),  # <- round
    "floor": lambda h: h.floor(),  # <- floor
    "sign": lambda h: h.sign(),  # <- sign
    "clamp": lambda h: (h + 50).clamp(-1, 1),  # <- clamp
    "relu": lambda h: torch.relu(h - 50),  # <- relu
    "mul": lambda h: h * 0,  # <- mul
    "hardtanh": lambda h: F.hardtanh(h + 50),  # <- hardtanh
    "softmax": lambda h: h[:, :1].softmax(1),  # <- softmax
    "sigmoid": lambda h: (h + 500).sigmoid(),  # <- sigmoid
    "masked_fill": lambda h: h.masked_fill(torch.ones_like(h, dtype=torch.bool), 1.0),  # <- masked_fill
    "TimesZero.apply": lambda h: TimesZero.apply(h),  # <- TimesZero.apply
    "where": lambda h: torch.where(h > 50, h, 1.0),  # <- where
    "scale_gradient": lambda h: fl.scale_gradient(h, 0.0),  # <- scale_gradient
}
BREAKS = {
    "sqrt": lambda h: (h * 0).sqrt(),  # <- sqrt
    "log": lambda h: torch.where(h > 50, (h * 0).log(), h),  # <- log
    "div": lambda h: torch.where(h > 50, h / 0, 1.0),  # <- div
    "log1p": lambda h: torch.where(h > 50, torch.log1p(-torch.ones_like(h) + 0 * h), h),  # <- log1p
}


def between(op, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.ModuleDict({"before": nn.Linear(4, 4), "beside": nn.Linear(4, 1), "after": nn.Linear(1, 1)}).to(dtype)
    x = torch.randn(8, 4, dtype=dtype)

    def loss_fn():
        h = model["before"](x)
        return (model["after"](op(h).reshape(-1, 1)).square().mean() + model["beside"](x).mean()).float()

    return model, loss_fn


@pytest.mark.parametrize("make", [None, torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", VANISHES)
def test_the_line_that_makes_a_gradient_zero_is_named(name, make):
    model, loss_fn = between(VANISHES[name])
    optimizer = None if make is None else make(model.parameters(), lr=0.1)
    found = fl.explain(model, loss_fn, optimizer).to_dict()
    for parameter in ("before.weight", "before.bias"):
        assert "zero gradient" in (found[parameter]["verdict"], *found[parameter]["notes"])
        assert found[parameter]["where"].endswith(f"{__name__.rpartition('.')[2]}.py:{line_of(__file__, name)}")
    assert {found[name]["verdict"] for name in ("beside.weight", "beside.bias", "after.bias")} == {"learns"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BREAKS)
def test_the_line_that_makes_a_gradient_nan_or_inf_is_named(name, dtype):
    model, loss_fn = between(BREAKS[name], dtype)
    found = fl.explain(model, loss_fn).to_dict()
    assert found["before.weight"]["verdict"] == "not finite"
    assert found["before.weight"]["where"].endswith(f":{line_of(__file__, name)}")


def test_the_reason_is_the_call_and_the_line():
    model, loss_fn = between(VANISHES["round"])
    found = fl.explain(model, loss_fn).to_dict()["before.weight"]
    assert found["reason"] == 'its gradient is exactly zero from round: "round": lambda h: torch.round(h),'
    optimizer = torch.optim.AdamW(model.parameters())
    found = fl.explain(model, loss_fn, optimizer).to_dict()["before.weight"]
    assert found["reason"] == "exactly zero from round on, but decay, momentum or an older `.grad` moves it"


def test_the_line_inside_a_module_is_the_one_that_its_forward_has():
    model, x = nn.Sequential(nn.Linear(4, 3), Masked(), nn.Linear(3, 1)), torch.randn(8, 4)
    found = fl.explain(model, lambda: model(x).square().mean()).to_dict()
    assert found["0.weight"]["reason"] == "its gradient is exactly zero from relu: return F.relu(h)"
    assert found["2.weight"]["reason"].startswith("its gradient is exactly zero from linear: ")  # it multiplies zeros


def test_two_lines_that_make_it_zero_on_two_ways_are_both_named():
    model, x = nn.ModuleDict({"before": nn.Linear(4, 4), "after": nn.Linear(4, 1)}), torch.randn(8, 4)

    def loss_fn():
        h = model["before"](x)
        first = h.round()  # <- first way
        second = h * 0  # <- second way
        return model["after"](first + second).mean()

    found = fl.explain(model, loss_fn).to_dict()["before.weight"]
    lines = {f":{line_of(__file__, mark)}" for mark in ("first way", "second way")}
    assert any(found["where"].endswith(line) for line in lines)
    assert "(also " in found["reason"]


def test_a_gradient_that_lives_on_another_way_is_no_alarm():
    model, x = nn.ModuleDict({"before": nn.Linear(4, 4), "after": nn.Linear(4, 1)}), torch.randn(8, 4)

    def loss_fn():
        h = model["before"](x)
        return model["after"](h + (h.round() - h).detach() + h.sign()).square().mean()

    assert fl.explain(model, loss_fn, torch.optim.AdamW(model.parameters(), lr=0.1)).alarms == []


def test_ways_that_cancel_each_other_have_no_line():
    model, x = nn.ModuleDict({"before": nn.Linear(4, 1), "after": nn.Linear(4, 1)}), torch.randn(8, 4)

    def loss_fn():
        h = model["before"](x)
        return (model["after"](x) + h - h).mean()

    found = fl.explain(model, loss_fn).to_dict()
    assert found["before.weight"]["verdict"] == "zero gradient"
    assert found["after.weight"]["verdict"] == "learns"
