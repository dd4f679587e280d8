"""Hooks and attributes of a Parameter belong to what learns of it, under every later plan and after a merge."""

import pytest
import torch
from torch import nn

import frostline as fl

V, D = 6, 4
MASK = torch.arange(V * D).view(V, D) % 7 == 0


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(V, D))

    def forward(self, x):
        return x @ self.weight.T


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight

    @property
    def weight(self):
        return self.head.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


IDS, X = torch.tensor([0, 1, 3, 3]), torch.linspace(-1, 1, 5 * D).view(5, D)
MODELS = {
    "embedding": (lambda: nn.Embedding(V, D), IDS),
    "sparse embedding": (lambda: nn.Embedding(V, D, sparse=True), IDS),
    "linear": (lambda: nn.Linear(D, V), X),
    "plain parameter": (Plain, X),
    "tied head": (Tied, IDS),
}
SELECTIONS = {"rows": fl.rows([1, 3]), "entries": fl.entries(MASK), "all rows": fl.rows(range(V)), "all": fl.everything}
EACH = pytest.mark.parametrize(("make", "x"), MODELS.values(), ids=MODELS.keys())


def backward(model, x):
    model.zero_grad()
    model(x).square().sum().backward()


def learned(model):
    (parameter,) = [p for n, p in model.named_parameters() if p.requires_grad and "bias" not in n]
    return parameter


@EACH
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_hooks_of_the_parameter_run_once_for_what_learns(make, x, selection):
    model, seen = make(), []
    model.weight.register_hook(lambda gradient: seen.append(gradient.shape) or 2 * gradient)
    model.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter))
    fl.train_only(model, {"*weight": selection})
    backward(model, x)
    assert seen == [learned(model).shape, learned(model)]
    doubled = learned(model).grad.to_dense()
    assert doubled.abs().sum() > 0
    learned(model)._backward_hooks.clear()
    backward(model, x)
    assert torch.equal(learned(model).grad.to_dense() * 2, doubled)


@EACH
def test_hooks_that_are_registered_later_live_on_and_handles_remove_them(make, x):
    model, seen = make(), []
    first = model.weight.register_hook(lambda gradient: seen.append("first"))
    fl.train_only(model, {"*weight": fl.rows([1, 3])})
    second = model.weight.learned.register_hook(lambda gradient: seen.append("second"))
    model.weight.learned.register_post_accumulate_grad_hook(lambda parameter: seen.append("accumulated"))
    fl.train_only(model, {"*weight": fl.entries(MASK)})
    backward(model, x)
    assert seen == ["first", "second", "accumulated"]
    seen.clear()
    first.remove()
    fl.train_only(model, {"*weight": fl.nothing, "*bias": fl.everything} if hasattr(model, "bias") else {})
    fl.merge(model)
    backward(model, x)
    assert seen == ["second", "accumulated"]
    seen.clear()
    second.remove()
    backward(model, x)
    assert seen == ["accumulated"]


@EACH
def test_attributes_of_the_parameter_are_there_under_every_plan(make, x):
    model = make()
    model.weight.no_weight_decay = True
    fl.train_only(model, {"*weight": fl.rows([1])})
    assert model.weight.no_weight_decay
    assert learned(model).no_weight_decay
    learned(model).lr_scale = 0.5
    fl.train_only(model, {"*weight": fl.entries(MASK)})
    assert (model.weight.no_weight_decay, learned(model).lr_scale) == (True, 0.5)
    fl.merge(model)
    assert (model.weight.no_weight_decay, model.weight.lr_scale) == (True, 0.5)


def test_an_attribute_may_have_a_name_that_a_partial_tensor_uses():
    model = nn.Embedding(V, D)
    model.weight.frozen, model.weight.learned = True, "not yet"
    fl.train_only(model, {"weight": fl.rows([1])})
    assert model.weight.frozen.shape == (V, D)
    assert (model.weight_learned.frozen, model.weight_learned.learned) == (True, "not yet")
    model(torch.tensor([1])).sum().backward()
    assert torch.equal(model.weight.learned.grad, torch.ones(1, D))


def test_groups_made_by_attribute_keep_decay_from_a_part_that_learns():
    model = nn.Embedding(V, D)
    model.weight.no_weight_decay = True
    plan = fl.train_only(model, {"weight": fl.rows([1, 3])})
    decayed = [p for p in plan.parameters() if not getattr(p, "no_weight_decay", False)]
    plain = [p for p in plan.parameters() if getattr(p, "no_weight_decay", False)]
    assert (len(decayed), len(plain)) == (0, 1)
    optimizer = torch.optim.AdamW([{"params": plain, "weight_decay": 0.0}], lr=0.1)
    before = model.weight.detach().clone()
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert (model.weight.detach() != before).any(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("plans", [1, 2])
def test_hooks_of_a_compiled_module_run_once_although_everything_is_switched_on(plans):
    module, calls = nn.Embedding(5, 4), []
    module.weight.register_hook(lambda gradient: calls.append("gradient") or 2 * gradient)
    module.weight.register_post_accumulate_grad_hook(lambda parameter: calls.append(tuple(parameter.grad.shape)))
    for rows in ([1], [1, 2])[:plans]:
        fl.train_only(module, {"weight": fl.rows(rows)})
    module.requires_grad_(True)
    torch.compile(module, backend="aot_eager")(torch.tensor([1])).sum().backward()
    assert calls == ["gradient", (plans, 4)]
    assert torch.equal(module.weight.grad[0], torch.full((4,), 2.0))
    fl.merge(module)
    calls.clear()
    module(torch.tensor([1])).sum().backward()
    assert calls == ["gradient", (5, 4)]
