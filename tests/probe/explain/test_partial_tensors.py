"""Models of which train_only lets a part learn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

from .cases import line_of, two_layers, verdicts


def planned():
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(10, 3), "norm": nn.BatchNorm1d(3), "head": nn.Linear(3, 2)})
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0] = True
    plan = fl.train_only(model, {"embed.weight": fl.rows([2, 5, 7]), "head.weight": fl.entries(mask)})
    ids = torch.tensor([0, 2, 5, 5])
    return model, lambda: model["head"](model["norm"](model["embed"](ids))).square().mean(), plan


def test_a_partial_tensor_has_a_verdict_for_each_group_of_rows():
    model, loss_fn, plan = planned()
    explanation = fl.explain(model, loss_fn, torch.optim.Adam(plan.parameters()))
    found = explanation.to_dict()
    assert list(found) == ["embed.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert found["embed.weight"]["verdict"] == "learns in part"
    assert found["embed.weight"]["reason"] == "3 of 10 rows, 2 with a gradient now"
    assert found["embed.weight"]["groups"] == {"learns": 2, "zero gradient": 1, "frozen by plan": 7}
    assert found["head.weight"]["groups"] == {"learns": 3, "frozen by plan": 3}
    assert found["head.bias"]["verdict"] == "frozen by plan"
    assert explanation.alarms == []


def test_statistics_that_move_in_a_frozen_module_are_listed():
    model, loss_fn, plan = planned()
    names = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    explanation = fl.explain(model, loss_fn, torch.optim.Adam(plan.parameters()))
    assert explanation.buffers == names
    assert "Buffers of frozen modules that move all the same: norm.running_mean, " in str(explanation)
    model["norm"].requires_grad_(True)
    assert fl.explain(model, loss_fn).buffers == ()
    model["norm"].requires_grad_(False).eval()
    assert fl.explain(model, loss_fn).buffers == ()


def test_statistics_beside_what_learns_are_not_listed():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), nn.BatchNorm1d(3, affine=False))
    x = torch.randn(8, 4)
    assert fl.explain(model, lambda: model(x).square().sum()).buffers == ()
    model.requires_grad_(False)
    buffers = fl.explain(model, lambda: model(x).square().sum() * torch.ones((), requires_grad=True)).buffers
    assert {"0.parametrizations.weight.0._u", "1.running_mean"} <= set(buffers)


def test_statistics_of_a_module_that_the_pass_makes_are_a_part_of_what_makes_it():
    class Grows(nn.Linear):
        def forward(self, x):
            if not hasattr(self, "norm"):
                self.norm = nn.BatchNorm1d(2)
            return self.norm(super().forward(x))

    model, x = Grows(3, 2), torch.randn(4, 3)
    for learns, listed in ((True, ()), (False, ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"))):
        model.requires_grad_(learns)
        assert fl.explain(model, lambda: model(x).square().sum()).buffers == listed
        assert not hasattr(model, "norm")


def test_a_sparse_buffer_is_listed_where_it_moves_and_only_there():
    class Graph(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.register_buffer("still", torch.eye(3).to_sparse())
            self.register_buffer("moves", torch.eye(3).to_sparse())

        def forward(self, x):
            self.moves.mul_(2)
            return self.still @ super().forward(x)

    model, x = Graph().requires_grad_(False), torch.randn(3, 3)
    assert fl.explain(model, lambda: model(x).sum()).buffers == ("moves",)
    optimizer = torch.optim.SGD(model.requires_grad_().parameters(), lr=0.1)
    trial = fl.trial_step(model, lambda: model(x).sum(), optimizer)
    assert (trial.buffers, trial["weight"].entries_moved) == (("moves",), 9)
    assert torch.equal(model.moves.to_dense(), torch.eye(3))


def test_rows_that_are_cut_off_are_cut_and_the_rest_is_frozen_by_plan():
    model, _, plan = planned()
    ids = torch.tensor([2])
    found = fl.explain(
        model, lambda: model["head"](model["embed"](ids).detach()).sum(), torch.optim.Adam(plan.parameters())
    ).to_dict()["embed.weight"]
    assert found["verdict"] == "cut"
    assert found["groups"] == {"cut": 3, "frozen by plan": 7}


@pytest.mark.parametrize("of", ["rows", "entries"])
def test_a_partial_weight_that_is_detached_is_cut_there(of):
    embed = nn.Embedding(6, 2)
    fl.train_only(embed, {"weight": fl.rows([1]) if of == "rows" else fl.entries(torch.rand(6, 2) > 0.5)})
    ids = torch.tensor([0, 1])

    def loss_fn():
        weight = embed.weight.detach()  # <- partial
        return F.embedding(ids, weight).sum() + torch.ones((), requires_grad=True)

    found = fl.explain(embed, loss_fn).to_dict()["weight"]
    assert found["verdict"] == "cut"
    assert found["where"].endswith(f":{line_of(__file__, 'partial')}")


def test_a_frozen_part_that_a_stale_gradient_moves_is_reported():
    model, loss_fn, plan = planned()
    frozen = model["embed"]._parameters["weight"]
    optimizer = torch.optim.SGD([*plan.parameters(), frozen], lr=0.1)
    assert verdicts(model, loss_fn, optimizer)["embed.weight"] == "learns in part"
    frozen.grad = torch.ones_like(frozen)
    found = fl.explain(model, loss_fn, optimizer).to_dict()["embed.weight"]
    assert (found["verdict"], found["notes"]) == ("moves without gradient", ["learns in part"])
    assert found["groups"] == {"learns": 2, "zero gradient": 1, "moves without gradient": 7}


def test_what_train_only_froze_is_told_from_what_the_user_froze():
    model, loss_fn = two_layers()
    model[0].requires_grad_(False)
    assert verdicts(model, loss_fn)["0.weight"] == "frozen"
    fl.train_only(model, {"2.*": fl.everything})
    assert verdicts(model, loss_fn)["0.weight"] == "frozen by plan"


def test_a_plan_without_rows_is_frozen_by_plan():
    embed = nn.Embedding(4, 2)
    fl.train_only(embed, {"weight": fl.rows([])})
    weight = nn.Parameter(torch.ones(2))
    assert verdicts(embed, lambda: (embed(torch.tensor([1])) * weight).sum()) == {"weight": "frozen by plan"}
