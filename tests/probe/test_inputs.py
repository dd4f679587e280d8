"""What beginners pass as a loss function or an optimizer: one line that says what to return or to pass."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


class Output(OrderedDict):  # type: ignore[type-arg]
    """As transformers' ModelOutput: a mapping with attributes."""

    loss = torch.ones(())


RETURNED: dict[str, tuple[Any, str]] = {
    "a dict": (
        {"logits": 1, "loss": 2},
        "it returned dict, but the loss must be a tensor. Return one of its values, such as result['loss'].",
    ),
    "a dict of other names": ({"ce": 1}, "such as result['ce']."),
    "a dict of several losses": ({"x": 0, "loss_ce": 1}, "such as result['loss_ce']."),
    "an output of transformers": (
        Output(loss=1),
        "it returned Output, but the loss must be a tensor. Return one of its values, such as result['loss'].",
    ),
    "a tuple": ((torch.ones(()), 1), "it returned tuple, but the loss must be a tensor. Return the loss alone."),
    "nothing": (None, "it returned None, but the loss must be a tensor. End it with `return loss`."),
    "several numbers": (torch.ones(3), "the loss has shape (3,), but it must be one number. Return its mean."),
}


@pytest.mark.parametrize("name", RETURNED)
@pytest.mark.parametrize("look", ["explain", "trial_step", "gradients"])
def test_a_loss_that_is_no_number_gets_one_line_that_says_what_to_return(
    name: str, look: str, model: nn.Linear
) -> None:
    returned, says = RETURNED[name]
    with pytest.raises(fl.ProbeError, match=re.escape(f"loss_fn: {says}" if says.startswith(("it", "the")) else says)):
        _looks(model, lambda: returned)[look]()


def test_a_python_number_has_lost_its_graph(model: nn.Linear) -> None:
    with pytest.raises(fl.ProbeError, match=r"it returned float.*without item\(\), float\(\) or numpy\(\)"):
        fl.gradients(lambda: model(torch.ones(3)).sum().item(), [model.weight])


@pytest.mark.parametrize("look", ["explain", "trial_step", "gradients"])
def test_a_loss_function_that_calls_backward_itself_is_told_so_and_changes_nothing(look: str, model: nn.Linear) -> None:
    before = model.weight.detach().clone()

    def step() -> torch.Tensor:
        loss: torch.Tensor = model(torch.ones(3)).square().sum()
        loss.backward()
        return loss

    with pytest.raises(
        fl.ProbeError, match=r"loss_fn: it called backward\(\) itself.* without backward\(\) and step\(\)"
    ):
        _looks(model, step)[look]()
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None
    (found,) = fl.gradients(lambda: model(torch.ones(3)).square().sum(), [model.weight])
    assert found.abs().sum() > 0


@pytest.mark.parametrize("look", ["explain", "trial_step"])
def test_a_scheduler_in_the_place_of_an_optimizer_names_the_one_it_drives(look: str, model: nn.Linear) -> None:
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(model.parameters(), lr=1.0), lambda step: 1.0)
    with pytest.raises(TypeError, match=r"LambdaLR has no .* Pass the one that it drives: its `.optimizer`."):
        _looks(model, lambda: model(torch.ones(3)).sum(), scheduler)[look]()


def _looks(model: nn.Linear, loss_fn: Callable[[], Any], optimizer: Any = None) -> dict[str, Callable[[], object]]:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "explain": lambda: fl.explain(model, loss_fn, optimizer),
        "trial_step": lambda: fl.trial_step(model, loss_fn, optimizer),
        "gradients": lambda: fl.gradients(loss_fn, [model.weight]),
    }


class OwnCriterion(nn.Module):
    def forward(self, *, logits: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
        return torch.mul(logits.sum(), weight)


NEEDS_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "a criterion": (nn.CrossEntropyLoss(), "this CrossEntropyLoss needs input, target"),
    "a module with a keyword": (OwnCriterion(), "this OwnCriterion needs logits"),
    "a function": (nn.functional.cross_entropy, "this function needs input, target"),
    "a lambda that expects the model": (lambda model: model(torch.ones(1, 3)).sum(), "this function needs model"),
}


@pytest.mark.parametrize("call", ["explain", "trial_step", "gradients", "perturb"])
@pytest.mark.parametrize(("loss_fn", "says"), NEEDS_ARGUMENTS.values(), ids=NEEDS_ARGUMENTS)
def test_a_loss_function_that_needs_arguments_is_refused(model: nn.Linear, call: str, loss_fn: Any, says: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls: dict[str, Callable[[], object]] = {
        "explain": lambda: fl.explain(model, loss_fn, optimizer),
        "trial_step": lambda: fl.trial_step(model, loss_fn, optimizer),
        "gradients": lambda: fl.gradients(loss_fn, [model.weight]),
        "perturb": lambda: fl.adversarial.perturb(loss_fn, model, epsilon=1.0),
    }
    with pytest.raises(TypeError, match=rf"^loss_fn: it is called without arguments, but {says}\. Pass one"):
        calls[call]()


def test_a_loss_function_whose_arguments_may_be_left_out_runs(model: nn.Linear) -> None:
    x = torch.ones(1, 3)

    def loss_fn(*rest: object, scale: float = 2.0, **options: object) -> torch.Tensor:
        return torch.mul(model(x).sum(), scale)

    (gradient,) = fl.gradients(loss_fn, [model.bias])
    assert torch.equal(gradient, torch.full((2,), 2.0))


def test_a_loss_function_that_gets_its_arguments_from_a_decorator_runs(model: nn.Linear) -> None:
    def with_batch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], torch.Tensor]:
        @wraps(function)
        def call() -> torch.Tensor:
            return function(torch.ones(1, 3))

        return call

    @with_batch
    def loss_fn(x: torch.Tensor) -> torch.Tensor:
        return torch.sum(model(x))

    (gradient,) = fl.gradients(loss_fn, [model.bias])
    assert torch.equal(gradient, torch.ones(2))


def test_a_loss_function_made_by_partial_runs(model: nn.Linear) -> None:
    x = torch.ones(1, 3)
    (gradient,) = fl.gradients(partial(nn.functional.cross_entropy, model(x), torch.tensor([0])), [model.bias])
    assert gradient.abs().sum() > 0
