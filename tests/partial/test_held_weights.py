"""A weight that was taken from its module before a plan or a merge raises when it is used after it."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

V, D = 5, 4
IDS = torch.arange(V)
MASK = torch.eye(V, D) > 0
SELECTIONS = {"rows": fl.rows([1]), "the same rows": fl.rows([2, 3]), "entries": fl.entries(MASK)}
CHANGES = {
    "a plan for other rows": lambda m: fl.train_only(m, {"weight": fl.rows([0, 1])}),
    "a plan for the same rows": lambda m: fl.train_only(m, {"weight": fl.rows([1])}),
    "a plan for entries": lambda m: fl.train_only(m, {"weight": fl.entries(MASK)}),
    "a plan for everything": lambda m: fl.train_only(m, {"weight": fl.everything}),
    "a plan for nothing": lambda m: fl.train_only(m, {}),
    "a merge": fl.merge,
}
USES = {
    "a product": lambda w: (w * 1).sum(),
    "a lookup": lambda w: F.embedding(IDS, w),
    "a bag": lambda w: F.embedding_bag(IDS[None], w),
    "linear": lambda w: F.linear(torch.ones(2, D), w),
    "a view": lambda w: w[1] + 1,
    "a write": lambda w: torch.no_grad()(w.fill_)(3.0),
    "a write to a row": lambda w: torch.no_grad()(w.__setitem__)(1, 3.0),
    "detach": lambda w: w.detach(),
    "data": lambda w: w.data,
    "its address": lambda w: w.data_ptr(),
    "clone": lambda w: w.clone(),
    "numpy": lambda w: w.detach().numpy(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.parametrize("first", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_a_weight_held_across_a_change_raises_and_changes_nothing(first, use, change):
    torch.manual_seed(0)
    model = nn.Embedding(V, D)
    fl.train_only(model, {"weight": first})
    weight = model.weight
    use(weight)  # right before the change
    change(model)
    model.load_state_dict({"weight": torch.full((V, D), 2.0)})
    with pytest.raises(fl.PartialTensorError, match="was taken from its module before a later plan or a merge"):
        use(weight)
    assert torch.equal(model.weight.detach(), torch.full((V, D), 2.0))
    use(model.weight)  # taken again


def test_a_view_that_was_taken_before_raises_as_well():
    model = nn.Embedding(V, D)
    fl.train_only(model, {"weight": fl.rows([1])})
    row = model.weight[1]
    assert torch.equal(row + 0, model.weight_learned[0])
    fl.train_only(model, {"weight": fl.rows([1, 2])})
    with pytest.raises(fl.PartialTensorError, match="taken from its module"):
        _ = row + 0


def test_a_weight_that_a_module_keeps_in_a_list_raises_instead_of_a_wrong_logit():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.kept = nn.Embedding(V, D), []

        def forward(self, ids):
            return self.embed(ids) @ self.kept[0].T

    model = Cached()
    fl.train_only(model, {"embed.weight": fl.rows([1])})
    model.kept.append(model.embed.weight)
    expected = model(IDS)
    fl.train_only(model, {"embed.weight": fl.rows([1])})
    with pytest.raises(fl.PartialTensorError, match="taken from its module"):
        model(IDS)
    model.kept[0] = model.embed.weight
    assert torch.allclose(model(IDS), expected)


@pytest.mark.parametrize("first", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_a_weight_is_the_same_object_after_a_step_and_its_gradient_still_reaches_the_model(first: object) -> None:
    module = nn.Linear(D, V)
    plan = fl.train_only(module, {"weight": first})
    optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)
    weight = module.weight
    for _ in range(3):
        before = weight.detach().clone()
        optimizer.zero_grad()
        (module(torch.ones(2, D)).sum() + weight.square().sum()).backward()
        optimizer.step()
        assert module.weight is weight
        expected = before.clone()
        learns = module._frostline.partial["weight"].indices.index
        expected[learns] -= 0.1 * (2 + 2 * before)[learns]
        torch.testing.assert_close(weight.detach(), expected)
        assert not torch.equal(weight.detach(), before)


def test_a_conversion_keeps_no_memory_of_the_weight_before() -> None:
    module = nn.Linear(D, V)
    fl.train_only(module, {"weight": fl.rows([1])})
    before = weakref.ref(module.weight)
    assert before() is module.weight
    module.double()
    assert before() is None
