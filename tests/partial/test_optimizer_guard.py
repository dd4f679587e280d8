"""An optimizer that no longer trains what learns raises before its step; the check costs other optimizers nothing."""

from __future__ import annotations

import copy
import sys
import threading
import traceback

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.partial import optimizer_guard


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


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters were looked up before each step."""
    counts: list[int] = []
    held_by = optimizer_guard._held_by

    def counted(optimizer: torch.optim.Optimizer) -> object:
        counts.append(sum(len(group["params"]) for group in optimizer.param_groups))
        return held_by(optimizer)

    monkeypatch.setattr(optimizer_guard, "_held_by", counted)
    return counts


def test_an_optimizer_is_looked_at_once_until_a_plan_or_its_groups_change(lookups: list[int]) -> None:
    model, _ = make()
    unrelated = [nn.Parameter(torch.ones(1)) for _ in range(30)]
    optimizer = torch.optim.SGD(unrelated, lr=0.1)
    for parameter in unrelated:
        parameter.grad = torch.ones(1)
    for _ in range(5):
        optimizer.step()
    assert lookups == [30]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    optimizer.step()
    optimizer.step()
    assert lookups == [30, 31]
    fl.train_only(model, {"embed.weight": fl.rows([2])})
    optimizer.step()
    optimizer.step()
    assert lookups == [30, 31, 31]
    assert all(parameter.item() < 0.2 for parameter in unrelated)


def test_an_optimizer_that_was_looked_at_before_the_plan_still_raises_after_it(lookups: list[int]) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 2)})
    make()  # so that the check runs before the first plan for this model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model["embed"](torch.arange(5)).sum().backward()
    optimizer.step()
    plan = fl.train_only(model, {"embed.weight": fl.rows([1])})
    for _ in range(2):
        with pytest.raises(fl.StaleOptimizerError, match="holds the frozen part"):
            optimizer.step()
    plan.carry(optimizer)  # replaces the parameter in the list that was looked at
    model["embed"](torch.arange(5)).sum().backward()
    before = table(model)
    optimizer.step()
    assert (table(model) != before).any(dim=1).tolist() == [False, True, False, False, False]


def test_models_are_planned_and_trained_in_several_threads() -> None:
    errors, moved = [], []
    interval = sys.getswitchinterval()

    def train() -> None:
        try:
            for _ in range(40):
                model, plan = make()
                before = table(model)
                step(model, plan.parameters())
                moved.append((table(model) != before).any(dim=1).tolist())
                fl.merge(model)
        except Exception as error:
            errors.append("".join(traceback.format_exception(error)))

    threads = [threading.Thread(target=train) for _ in range(6)]
    try:
        sys.setswitchinterval(1e-5)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert moved == [[False, True, False, False, True]] * 240


def test_an_optimizer_that_cannot_be_hashed_steps_and_is_checked() -> None:
    class Unhashable(torch.optim.SGD):
        def __eq__(self, other: object) -> bool:
            return self is other

        __hash__ = None  # type: ignore[assignment]

    model, plan = make()
    optimizer = Unhashable(plan.parameters(), lr=0.1)
    before = table(model)
    for _ in range(2):
        model["head"](model["embed"](torch.arange(5))).pow(2).sum().backward()
        optimizer.step()
    assert (table(model) != before).any(dim=1).tolist() == [False, True, False, False, True]
    fl.train_only(model, {"embed.weight": fl.rows([2])})
    with pytest.raises(fl.StaleOptimizerError):
        optimizer.step()
