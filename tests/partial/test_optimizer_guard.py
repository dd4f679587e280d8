"""If other code sets requires_grad=False for a learned part after the plan, the first step raises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import frostline as fl


def make() -> tuple[nn.ModuleDict, fl.Plan]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(5, 2), "head": nn.Linear(2, 3)})
    return model, fl.train_only(model, {"head.*": fl.everything, "embed.weight": fl.rows([1, 4])})


def step(model: nn.ModuleDict, parameters: list[nn.Parameter]) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    model["head"](model["embed"](torch.arange(5))).pow(2).sum().backward()
    optimizer.step()


def table(model: nn.ModuleDict) -> Tensor:
    return model["embed"].weight.detach().clone()


def test_a_part_that_was_switched_off_since_the_plan_stops_the_first_step() -> None:
    model, plan = make()
    model.requires_grad_(False)  # what get_peft_model does to a base model
    model["head"].requires_grad_(True)
    before = model["head"].weight.detach().clone()
    with pytest.raises(fl.StaleOptimizerError, match=r"shape \(2, 2\) has been switched off since the plan"):
        step(model, plan.parameters())
    assert torch.equal(model["head"].weight, before)


def test_a_plan_made_after_that_learns() -> None:
    model, _ = make()
    model.requires_grad_(False)
    plan = fl.train_only(model, {"head.*": fl.everything, "embed.weight": fl.rows([1, 4])})
    before = table(model)
    step(model, plan.parameters())
    assert (table(model) != before).any(dim=1).tolist() == [False, True, False, False, True]


def test_a_part_that_has_learned_may_be_switched_off_and_on_between_steps() -> None:
    model, plan = make()
    parameters = plan.parameters()
    step(model, parameters)
    before = table(model)
    model["embed"].weight.requires_grad_(False)
    step(model, list(model["head"].parameters()))
    assert torch.equal(table(model), before)
    model["embed"].weight.requires_grad_(True)
    step(model, parameters)
    assert not torch.equal(table(model), before)


def test_an_optimizer_of_another_model_proves_nothing() -> None:
    model, _ = make()
    other, plan = make()
    model.requires_grad_(False)
    before = copy.deepcopy(other["head"].weight)
    step(other, plan.parameters())
    assert not torch.equal(other["head"].weight, before)
