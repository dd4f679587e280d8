"""Names and patterns, re-planning, merging, and the models that are refused."""

import copy
import json
import re

import pytest
import torch
from torch import nn

import frostline as fl

IDS = torch.tensor([[0, 3, 3, 7], [9, 1, 3, 0]])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.norm = nn.BatchNorm1d(6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.hidden(self.norm(self.embed(ids).mean(1))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_exact_name_beats_a_pattern_and_among_patterns_the_last_wins(net):
    fl.train_only(net, {"norm.weight": fl.everything, "norm.*": fl.nothing, "*": fl.everything, "hidden.*": fl.nothing})
    assert learning(net) == {"embed.weight", "norm.weight", "norm.bias"}


def test_what_is_not_named_is_frozen(net):
    fl.train_only(net, {"hidden.bias": fl.everything})
    assert learning(net) == {"hidden.bias"}
    fl.train_only(net, {})
    assert learning(net) == set()


def test_the_natural_call_everything_but_these_rows(net):
    plan = fl.train_only(net, {"*": fl.everything, "embed.weight": fl.rows([3])})
    assert learning(net) == {"embed.weight_learned", "norm.weight", "norm.bias", "hidden.weight", "hidden.bias"}
    assert plan.learned == 6 + 12 + 42


@pytest.mark.parametrize("name", ["embed.weight", "head.weight", "hea*", "em*.weight"])
def test_a_tied_tensor_is_found_under_any_of_its_names(net, name):
    plan = fl.train_only(net, {name: fl.rows([3])})
    assert plan.to_dict()["tensors"]["embed.weight"]["tied"] == ["head.weight"]
    assert learning(net) == {"embed.weight_learned"}


def test_the_same_selection_under_both_names_of_a_tied_tensor_may_be_given_twice(net):
    fl.train_only(net, {"embed.weight": fl.rows([3, 1]), "head.weight": fl.rows(torch.tensor([3, 1]))})
    assert learning(net) == {"embed.weight_learned"}


@pytest.mark.parametrize(
    ("selections", "says"),
    [
        ({"embed.wieght": fl.everything}, "'embed.wieght' matches no parameter. The nearest names are: embed.weight"),
        ({"*": fl.everything, "decoder.*": fl.nothing}, "'decoder.*' matches no parameter. The nearest names are: "),
        (
            {"embed.weight": fl.rows([1]), "head.weight": fl.everything},
            "embed.weight and head.weight are one tensor (tied), but they are given different selections: "
            "rows([1]) and everything",
        ),
        ({"embed.weight": fl.rows([1]), "head.weight": fl.rows([2])}, "rows([1]) and rows([2])"),
    ],
)
def test_invalid_names_raise_and_nothing_changes(net, selections, says):
    before = learning(net)
    with pytest.raises(fl.PatternError, match=re.escape(says)):
        fl.train_only(net, selections)
    assert learning(net) == before
    assert type(net.embed) is nn.Embedding


def test_a_second_wrong_selection_leaves_the_first_tensor_alone(net):
    with pytest.raises(fl.RowError, match=r"hidden.weight: rows: 1 of 1 ids"):
        fl.train_only(net, {"embed.weight": fl.rows([1]), "hidden.weight": fl.rows([6])})
    assert type(net.embed) is nn.Embedding


def test_integer_tensors_cannot_learn():
    model = nn.Module()
    model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    model.scale = nn.Parameter(torch.ones(3))
    plan = fl.train_only(model, {"*": fl.everything})
    assert plan.to_dict()["tensors"]["codes"]["note"] == "torch.int8 cannot learn"
    with pytest.raises(fl.SelectionError, match=r"codes: torch.int8 cannot learn"):
        fl.train_only(model, {"codes": fl.everything})


# The plan -------------------------------------------------------------------------------------------------------------


def test_the_plan_prints_what_learns_and_what_adam_will_keep(net):
    plan = fl.train_only(net, {"embed.weight": fl.rows([3, 1]), "hidden.bias": fl.everything})
    assert str(plan).split("\n") == [
        "tensor                        shape           what learns    parameters  Adam state",
        "-----------------------------------------------------------------------------------",
        "embed.weight (= head.weight)  12 x 6          2 of 12 rows           12          24",
        "norm.weight                   6               nothing                 0           0",
        "norm.bias                     6               nothing                 0           0",
        "hidden.weight                 6 x 6           nothing                 0           0",
        "hidden.bias                   6               everything              6          12",
        "-----------------------------------------------------------------------------------",
        "total                         126 parameters  14.3 % learns          18          36",
        "Running statistics still change in train mode: norm. train_only(..., freeze_running_stats=True) freezes them.",
    ]


def test_adam_keeps_as_many_values_as_the_plan_says(net):
    plan = fl.train_only(net, {"embed.weight": fl.rows([3, 1]), "hidden.bias": fl.entries(torch.arange(6) > 3)})
    optimizer = torch.optim.Adam(plan.parameters())
    net(IDS).sum().backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert sum(value.numel() for value in kept) == plan.to_dict()["adam"] == 2 * (12 + 2)


def test_a_large_model_prints_its_frozen_tensors_in_one_line():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(30)])
    text = str(fl.train_only(model, {"7.bias": fl.everything}))
    assert "7.bias" in text
    assert "(59 more tensors)" in text
    assert len(text.split("\n")) == 6


def test_the_plan_as_plain_values_survives_json(net):
    plan = fl.train_only(net, {"embed.weight": fl.rows([3, 1])})
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["tensors"]["embed.weight"] == {
        "tied": ["head.weight"],
        "shape": [12, 6],
        "learns": "rows",
        "count": 2,
        "learned": 12,
        "total": 72,
        "adam": 24,
        "note": "",
    }
    assert (values["learned"], values["total"], values["adam"]) == (12, 126, 24)
    assert (values["moving_stats"], values["frozen_stats"]) == (["norm"], [])


# Again, and back ------------------------------------------------------------------------------------------------------


def test_planning_again_keeps_values_and_clears_gradients(net):
    fl.train_only(net, {"embed.weight": fl.rows([3, 1]), "hidden.*": fl.everything})
    net(IDS).sum().backward()
    with torch.no_grad():
        net.embed.weight_learned.add_(5)
    values, out = net.embed.weight.detach().clone(), net.eval()(IDS)
    fl.train_only(net, {"embed.weight": fl.rows([1, 0, 7])})
    assert torch.equal(net.embed.weight.detach().clone(), values)
    torch.testing.assert_close(net(IDS), out, rtol=1e-6, atol=1e-6)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert learning(net) == {"embed.weight_learned"}
    assert net.head.weight_learned is net.embed.weight_learned
    assert torch.equal(net.embed.weight_learned, values[[1, 0, 7]])


def test_planning_again_keeps_the_float32_digits_of_rows_that_still_learn():
    module = nn.Embedding(6, 4).to(torch.bfloat16)
    fl.train_only(module, {"weight": fl.rows([3, 1], dtype=torch.float32)})
    with torch.no_grad():
        module.weight_learned.fill_(1 + 2**-12)
    fl.train_only(module, {"weight": fl.rows([1, 5], dtype=torch.float32)})
    assert module.weight_learned[0].tolist() == [1 + 2**-12] * 4
    assert module.weight[3].tolist() == [1.0] * 4


def test_merge_gives_the_plain_model_back(net):
    net.hidden.bias.requires_grad_(False)
    plain = copy.deepcopy(net)
    fl.train_only(net, {"embed.weight": fl.rows([3, 1]), "hidden.bias": fl.everything})
    fl.train_only(net, {"embed.weight": fl.entries(torch.ones(12, 6) > 0)})
    with torch.no_grad():
        net.embed.weight_learned.add_(5)
    out = net.eval()(IDS)
    fl.merge(net)
    assert [type(module) for module in net.modules()] == [type(module) for module in plain.modules()]
    assert [(n, p.requires_grad) for n, p in net.named_parameters()] == [
        (n, p.requires_grad) for n, p in plain.named_parameters()
    ]
    assert all(
        vars(module).keys() == vars(twin).keys() for module, twin in zip(net.modules(), plain.modules(), strict=True)
    )
    torch.testing.assert_close(net(IDS), out, rtol=1e-6, atol=1e-6)
    assert net.head.weight is net.embed.weight
    assert torch.equal(net.embed.weight, plain.embed.weight + 5)


def test_merging_a_plain_model_changes_nothing(net):
    before = dict(net.named_parameters())
    fl.merge(net)
    assert dict(net.named_parameters()).keys() == before.keys()
    assert learning(net) == before.keys()


def test_a_plan_made_on_a_part_is_found_from_its_ancestor():
    inner = nn.Embedding(5, 2)
    fl.train_only(inner, {"weight": fl.rows([4])})
    learned = inner.weight_learned
    outer = nn.Sequential(inner, nn.Linear(2, 2))
    assert learning(outer) == {"0.weight_learned", "1.weight", "1.bias"}
    plan = fl.train_only(outer, {"*": fl.everything, "0.weight": fl.rows([1])})
    assert plan.learned == 2 + 6
    assert inner.weight_learned is not learned
    fl.merge(outer)
    assert type(outer[0]) is nn.Embedding


@pytest.mark.parametrize("again", ["plan", "merge"])
def test_a_tied_tensor_planned_through_one_owner_is_whole_again_from_their_ancestor(net, again):
    fl.train_only(net.embed, {"weight": fl.rows([3])})
    with torch.no_grad():
        net.embed.weight_learned.add_(5)
    values = net.embed.weight.detach().clone()
    if again == "plan":
        fl.train_only(net, {"embed.weight": fl.rows([1, 3])})
        assert net.head.weight_learned is net.embed.weight_learned
    else:
        fl.merge(net)
        assert net.head.weight is net.embed.weight
        assert net.head.weight.requires_grad
    assert torch.equal(net.head.weight.detach().clone(), values)


# Running statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True])
def test_running_statistics_of_frozen_modules_change_unless_frozen(net, freeze):
    plan = fl.train_only(net, {"embed.weight": fl.rows([3])}, freeze_running_stats=freeze)
    assert (plan.moving_stats, plan.frozen_stats) == (((), ("norm",)) if freeze else (("norm",), ()))
    before = copy.deepcopy(net.norm.state_dict())
    net.train()
    net(IDS)
    same = all(torch.equal(value, before[name]) for name, value in net.norm.state_dict().items())
    assert same == freeze
    assert net.norm.training != freeze
    assert net.hidden.training
    says = "Frozen running statistics: norm" if freeze else "Running statistics still change in train mode: norm"
    assert says in str(plan)
    fl.merge(net)
    assert net.norm.training
    assert type(net.norm) is nn.BatchNorm1d


def test_running_statistics_of_modules_that_learn_are_not_frozen(net):
    plan = fl.train_only(net, {"norm.weight": fl.everything}, freeze_running_stats=True)
    assert plan.moving_stats == plan.frozen_stats == ()
    net.train()
    assert net.norm.training


# Models that would be silently wrong ----------------------------------------------------------------------------------


def test_a_parameter_kept_outside_its_name_is_refused():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.weights = [self.layer.weight]

        def forward(self, x):
            return x @ self.weights[0]

    with pytest.raises(
        fl.PartialTensorError, match=r"layer.weight shares its memory with attribute weights of the model"
    ):
        fl.train_only(Caching(), {"layer.weight": fl.rows([1])})
    assert fl.train_only(Caching(), {"layer.weight": fl.everything}).learned == 9


def test_two_parameters_over_the_same_memory_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    with pytest.raises(fl.PartialTensorError, match=r"0.weight shares its memory with 1.weight"):
        fl.train_only(model, {"0.weight": fl.rows([1])})


def test_max_norm_is_refused():
    with pytest.raises(fl.SelectionError, match=r"weight: max_norm=1.0 rewrites frozen rows in the forward."):
        fl.train_only(nn.Embedding(4, 2, max_norm=1.0), {"weight": fl.rows([1])})


def test_a_name_that_is_taken_is_refused():
    module = nn.Linear(2, 2)
    module.weight_learned = 3
    with pytest.raises(fl.SelectionError, match="already has an attribute 'weight_learned'"):
        fl.train_only(module, {"weight": fl.rows([1])})


def test_a_lazy_module_is_refused_until_it_has_a_shape():
    module = nn.LazyLinear(4)
    with pytest.raises(fl.SelectionError, match="Run one batch through the model first"):
        fl.train_only(module, {"weight": fl.rows([1])})


def test_a_script_module_is_refused():
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.script"):
        module = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(fl.PartialTensorError, match="ScriptModule"):
        fl.train_only(module, {"weight": fl.everything})


# Optimizers that no longer drive what learns --------------------------------------------------------------------------


def test_an_optimizer_made_before_the_plan_raises_at_its_next_step(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    plan = fl.train_only(net, {"embed.weight": fl.rows([3])})
    net(IDS).sum().backward()
    before = net.embed.weight.detach().clone()
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("shape (12, 6) but not its learned part")) as error:
        optimizer.step()
    assert "torch.optim.AdamW(plan.parameters(), ...)" in str(error.value)
    assert torch.equal(net.embed.weight.detach().clone(), before)
    torch.optim.SGD(plan.parameters(), lr=0.1).step()
    assert not torch.equal(net.embed.weight.detach().clone(), before)


def test_an_optimizer_of_an_earlier_plan_raises(net):
    plan = fl.train_only(net, {"embed.weight": fl.rows([3])})
    optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)
    fl.train_only(net, {"embed.weight": fl.rows([3])})
    net(IDS).sum().backward()
    with pytest.raises(fl.StaleOptimizerError, match="from an earlier plan"):
        optimizer.step()


def test_optimizers_over_all_parameters_or_other_models_are_left_alone(net):
    plan = fl.train_only(net, {"embed.weight": fl.rows([3])})
    other = nn.Linear(2, 2)
    net(IDS).sum().backward()
    other(torch.ones(2)).sum().backward()
    before = other.weight.detach().clone(), net.embed.weight.detach().clone()
    torch.optim.AdamW(net.parameters()).step()
    torch.optim.AdamW(other.parameters()).step()
    assert not torch.equal(other.weight, before[0])
    after = net.embed.weight.detach().clone()
    assert (after != before[1]).any(1).nonzero().flatten().tolist() == [3]
    fl.merge(net)
    net(IDS).sum().backward()
    torch.optim.AdamW(net.parameters()).step()
    assert plan.learned == 6
