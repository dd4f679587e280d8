"""What the optimizers hold, and what their step does."""

import copy
import re

import pytest
import torch
from torch import nn

import frostline as fl

from .cases import two_layers, verdicts


def test_without_an_optimizer_membership_is_not_judged():
    model, loss_fn = two_layers()
    assert set(verdicts(model, loss_fn).values()) == {"learns"}


def test_several_optimizers_together_hold_what_learns():
    model, loss_fn = two_layers()
    first, second = (torch.optim.Adam(model[layer].parameters()) for layer in (0, 2))
    assert set(verdicts(model, loss_fn, [first, second]).values()) == {"learns"}
    assert verdicts(model, loss_fn, [second])["0.weight"] == "not in optimizer"
    assert verdicts(model, loss_fn, first)["2.weight"] == "not in optimizer"


def test_a_tensor_in_two_optimizers_is_listed_twice():
    model, loss_fn = two_layers()
    whole, part = torch.optim.Adam(model.parameters()), torch.optim.SGD(model[0].parameters(), lr=0.1)
    found = fl.explain(model, loss_fn, (whole, part)).to_dict()
    assert found["0.weight"]["notes"] == ["listed twice"]
    assert found["2.weight"]["notes"] == []
    assert {finding["verdict"] for finding in found.values()} == {"learns"}


def test_tied_tensors_are_one_with_a_note():
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    ids = torch.tensor([0, 3])
    explanation = fl.explain(model, lambda: model["head"](model["embed"](ids)).square().mean())
    assert explanation.to_dict() == {
        "embed.weight": {
            "verdict": "learns",
            "reason": "",
            "where": None,
            "notes": ["tied"],
            "fix": "",
            "tied": ["head.weight"],
            "groups": None,
        }
    }
    assert "embed.weight (= head.weight)" in str(explanation)


@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_a_learning_rate_of_zero_is_named(rate):
    model, loss_fn = two_layers()
    optimizer = torch.optim.Adam([{"params": model[0].parameters(), "lr": rate}, {"params": model[2].parameters()}])
    assert verdicts(model, loss_fn, optimizer) == {
        "0.weight": "learning rate 0",
        "0.bias": "learning rate 0",
        "2.weight": "learns",
        "2.bias": "learns",
    }


def test_an_optimizer_of_another_model_is_reported():
    model, loss_fn = two_layers()
    optimizer = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    explanation = fl.explain(model, loss_fn, optimizer)
    assert set(explanation.alarms) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert (
        "The optimizer holds 4 tensors of shape (3, 4), (3,), (1, 3) and 1 more, not in the model. "
        "Make it after the model is copied or changed, and after train_only." in explanation.remarks
    )


def test_layers_in_a_plain_list_are_reported():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(4, 4)]
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.layers[0](x))

    model, x = Listed(), torch.randn(8, 4)
    explanation = fl.explain(model, lambda: model(x).mean(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert explanation.alarms == []
    assert explanation.remarks == (
        "The loss also reaches 2 Parameters of shape (4, 4), (4,), not among the model's parameters. "
        "Layers in a plain list need nn.ModuleList, tensors nn.Parameter.",
    )
    assert model.layers[0].weight.grad is None


def test_a_tensor_that_is_not_a_parameter_is_reported_and_an_input_is_not():
    model = nn.Linear(4, 1)
    model.scale = torch.ones(4, requires_grad=True)
    x = torch.randn(8, 4, requires_grad=True)
    assert fl.explain(model, lambda: model(x).sum()).remarks == ()
    (remark,) = fl.explain(model, lambda: model(x * model.scale).sum()).remarks
    assert remark.startswith("The loss also reaches 1 tensor of shape (4,), not among the model's parameters.")
    assert x.grad is None
    assert model.scale.grad is None


def test_an_optimizer_made_before_the_plan_is_reported_although_its_step_raises():
    model, loss_fn = two_layers()
    optimizer = torch.optim.Adam(model.parameters())
    fl.train_only(model, {"0.weight": fl.rows([0]), "2.*": fl.everything})
    explanation = fl.explain(model, loss_fn, optimizer)
    assert verdicts(model, loss_fn, optimizer)["0.weight"] == "not in optimizer"
    assert explanation.raised.startswith("The step raised StaleOptimizerError: ")


def test_a_stale_gradient_moves_a_frozen_tensor():
    model, loss_fn = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn().backward()
    model[0].requires_grad_(False)
    found = fl.explain(model, loss_fn, optimizer).to_dict()
    assert found["0.weight"]["verdict"] == "moves without gradient"
    assert found["0.weight"]["notes"] == ["frozen"]
    assert found["2.weight"]["verdict"] == "learns"
    optimizer.zero_grad()
    assert verdicts(model, loss_fn, optimizer)["0.weight"] == "frozen"


def test_a_zero_filled_gradient_lets_decay_move_what_is_unused():
    model = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    x = torch.randn(8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found = fl.explain(model, lambda: model[0](x).mean(), optimizer).to_dict()
    assert (found["1.weight"]["verdict"], found["1.weight"]["notes"]) == ("unused", ["moves without gradient"])
    assert (found["0.weight"]["verdict"], found["0.weight"]["notes"]) == ("learns", [])


def test_a_mask_on_accumulated_gradients_is_part_of_the_step():
    model, loss_fn = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert verdicts(model, loss_fn, optimizer)["0.bias"] == "learns"

    def nothing(parameter):
        parameter.grad.zero_()

    model[0].bias.register_post_accumulate_grad_hook(nothing)
    assert verdicts(model, loss_fn, optimizer) == {
        "0.weight": "learns",
        "0.bias": "zero gradient",
        "2.weight": "learns",
        "2.bias": "learns",
    }


def test_an_optimizer_in_the_backward_pass_is_seen_and_undone():
    model, loss_fn = two_layers()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert set(verdicts(model, loss_fn).values()) == {"learns"}
    assert set(verdicts(model, loss_fn, list(optimizers.values())).values()) == {"learns"}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    loss_fn().backward()
    assert all((a != b).any() for a, b in zip(before, model.parameters(), strict=True))


def test_lbfgs_gets_its_closure():
    model, loss_fn = two_layers()
    assert set(verdicts(model, loss_fn, torch.optim.LBFGS(model.parameters(), max_iter=2)).values()) == {"learns"}


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (nn.Linear(1, 1), "optimizer: Linear has no `param_groups` and `step`. Pass the optimizer(s)."),
        ("adam", "optimizer: str has no `param_groups` and `step`"),
    ],
)
def test_what_is_not_an_optimizer_is_refused(optimizer, says):
    model, loss_fn = two_layers()
    with pytest.raises(TypeError, match=re.escape(says)):
        fl.explain(model, loss_fn, optimizer)


@pytest.mark.parametrize("look", [fl.explain, fl.trial_step])
def test_a_loss_that_was_called_already_is_refused(look):
    model, loss_fn = two_layers()
    with pytest.raises(TypeError, match=re.escape("loss_fn: expected a function, got Tensor. Pass one")):
        look(model, loss_fn(), torch.optim.SGD(model.parameters(), lr=0.1))


def test_what_is_not_a_model_is_refused():
    with pytest.raises(TypeError, match=re.escape("model: expected an nn.Module, got function.")):
        fl.explain(two_layers, lambda: torch.ones(()))


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda model: model(torch.ones(2, 4)), "loss_fn: the loss has shape (2, 1), but it must be one number."),
        (lambda model: None, "loss_fn: it returned None, but the loss must be a tensor. End it with"),
        (lambda model: True, "loss_fn: it returned bool"),
    ],
)
def test_what_is_not_a_loss_is_refused(loss, says):
    model, _ = two_layers()
    with pytest.raises(fl.ProbeError, match=re.escape(says)):
        fl.explain(model, lambda: loss(model))
