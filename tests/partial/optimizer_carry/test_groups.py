"""Each tensor in its group, each optimizer with what it holds."""

import functools
import re

import pytest
import torch
from torch import nn

import frostline as fl

from .cases import EMBED, OPTIMIZERS, D, Net, V, assert_untouched, loss_of, snapshot, steps, two_plans, values


def test_what_is_frozen_never_moves_again_though_its_momentum_was_large():
    """Beside it the same by a masked gradient, which moves."""
    model, masked = Net(), nn.Embedding(V, D)
    plan, optimizer = two_plans(model, OPTIMIZERS["sgd"], {"*": fl.everything}, {"embed.weight": fl.rows([1])})
    plan.carry(optimizer)
    before = values(model)
    steps(model, optimizer)
    after = values(model)
    kept = torch.arange(V) != 1
    assert torch.equal(after["embed.weight"][kept], before["embed.weight"][kept])
    assert torch.equal(after["conv.weight"], before["conv.weight"])
    assert (after["embed.weight"][1] != before["embed.weight"][1]).all()
    theirs = OPTIMIZERS["sgd"](masked.parameters())
    for mask in (torch.ones(V, 1), (torch.arange(V) == 1)[:, None]):
        before = masked.weight.detach().clone()
        theirs.zero_grad()
        ((masked.weight - 1) ** 2).sum().backward()
        masked.weight.grad *= mask
        theirs.step()
    assert (masked.weight[kept] != before[kept]).all()


def test_without_a_carry_the_next_step_says_what_to_call():
    _, optimizer = two_plans(Net(), OPTIMIZERS["adam"], EMBED, {"embed.weight": fl.rows([7])})
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("plan.carry(optimizer)")):
        optimizer.step()


def test_each_tensor_stays_in_its_group_and_the_groups_keep_their_options():
    model = Net()
    fl.train_only(model, {"*": fl.everything})
    optimizer = torch.optim.Adam(
        [
            {"params": [model.conv.bias, model.conv.weight], "lr": 0.5},
            {"params": [model.embed.weight, model.head.bias], "betas": (0.5, 0.6)},
        ],
        lr=0.1,
    )
    steps(model, optimizer)
    lists = [group["params"] for group in optimizer.param_groups]
    plan = fl.train_only(model, {"embed.weight": fl.rows([1]), "conv.*": fl.rows([0]), "head.bias": fl.everything})
    plan.carry(optimizer)
    first, second = optimizer.param_groups
    assert [id(p) for p in first["params"]] == [id(model.conv.weight.learned), id(model.conv.bias.learned)]
    assert [id(p) for p in second["params"]] == [id(model.embed.weight.learned), id(model.head.bias)] or [
        id(p) for p in second["params"]
    ] == [id(model.head.bias), id(model.embed.weight.learned)]
    assert (first["lr"], first["betas"], second["lr"], second["betas"]) == (0.5, (0.9, 0.999), 0.1, (0.5, 0.6))
    assert first["params"] is lists[0]
    assert second["params"] is lists[1]
    assert {id(p) for p in optimizer.state} == {id(p) for p in plan.parameters()}
    fl.train_only(model, {"conv.weight": fl.rows([0])}).carry(optimizer)  # a group may be left empty
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]
    before = values(model)
    steps(model, optimizer)
    assert not torch.equal(values(model)["conv.weight"], before["conv.weight"])


def test_names_of_parameters_follow():
    model = Net()
    fl.train_only(model, {"conv.*": fl.everything})
    optimizer = torch.optim.Adam((n, p) for n, p in model.named_parameters() if p.requires_grad)
    steps(model, optimizer)
    fl.train_only(model, {"conv.*": fl.rows([1]), "embed.weight": fl.rows([1])}).carry(optimizer)
    (group,) = optimizer.param_groups
    assert group["param_names"] == ["embed.weight_learned", "conv.weight_learned", "conv.bias_learned"]
    assert all(p is model.get_parameter(n) for n, p in zip(group["param_names"], group["params"], strict=True))


def test_parameters_of_another_model_stay_where_they_were_with_their_state():
    model, before, behind = Net(), nn.Linear(2, 2), nn.Linear(3, 1)
    learns = fl.train_only(model, EMBED).parameters()
    optimizer = torch.optim.Adam([*before.parameters(), *learns, *behind.parameters()])
    for module in (before, behind):
        module(torch.ones(1, module.in_features)).sum().backward()
    loss_of(model).backward()
    optimizer.step()
    states = [optimizer.state[p] for m in (before, behind) for p in m.parameters()]
    plan = fl.train_only(model, {"embed.weight": fl.rows([0, 1]), "conv.bias": fl.everything})
    plan.carry(optimizer)
    expected = [*before.parameters(), *plan.parameters(), *behind.parameters()]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in expected]
    assert all(
        optimizer.state[p] is s for p, s in zip([*before.parameters(), *behind.parameters()], states, strict=True)
    )


def test_fused_momentum_follows_its_rows():
    make = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
    model = Net()
    plan, optimizer = two_plans(model, make, EMBED, {"embed.weight": fl.rows([0, 5, 7])})
    (was,) = (state["momentum_buffer"] for state in optimizer.state.values())
    plan.carry(optimizer)
    (now,) = (state["momentum_buffer"] for state in optimizer.state.values())
    assert torch.equal(now, torch.stack([was[2], torch.zeros(D), was[0]]))
    before = values(model)["embed.weight"]
    steps(model, optimizer, 1)
    assert (values(model)["embed.weight"] != before).all(1).nonzero().flatten().tolist() == [0, 5, 7]


def test_what_nobody_held_needs_a_group_where_there_are_several():
    model = Net()
    fl.train_only(model, {"embed.weight": fl.rows([1]), "head.bias": fl.everything})
    optimizer = torch.optim.SGD([{"params": [model.embed.weight.learned]}, {"params": [model.head.bias]}], lr=0.1)
    plan = fl.train_only(model, {"embed.weight": fl.rows([2]), "head.bias": fl.everything, "conv.*": fl.everything})
    before = snapshot(optimizer)
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("conv.weight, conv.bias did not learn before")) as error:
        plan.carry(optimizer)
    assert "Pass the one that it belongs to: group=0 to 1 of SGD" in str(error.value)
    with pytest.raises(ValueError, match=re.escape("group: 2, but SGD has groups 0 to 1")):
        plan.carry(optimizer, group=2)
    assert_untouched(optimizer, before)
    plan.carry(optimizer, group=1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups] == [
        ["embed.weight_learned"],
        ["head.bias", "conv.weight", "conv.bias"],
    ]


def test_a_tensor_without_entries_begins_to_learn_like_any_other():
    model = nn.ParameterDict({"full": torch.ones(2, 3), "empty": torch.ones(0, 3)})
    optimizer = torch.optim.Adam(fl.train_only(model, {"full": fl.everything}).parameters())
    plan = fl.train_only(model, {"*": fl.everything})
    plan.carry(optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(model["full"]), id(model["empty"])}


def test_two_optimizers_of_one_model_each_keep_what_they_hold():
    model = Net()
    fl.train_only(model, {"embed.weight": fl.rows([1, 2]), "conv.*": fl.everything})
    table = fl.optim.RowAdamW([model.embed.weight.learned])
    dense = torch.optim.Adam([model.conv.weight, model.conv.bias])
    loss_of(model).backward()
    for optimizer in (table, dense):
        optimizer.step()
    plan = fl.train_only(model, {"embed.weight": fl.rows([2, 5]), "conv.*": fl.rows([0]), "head.bias": fl.everything})
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("head.bias did not learn before")):
        plan.carry(dense, table)
    before = snapshot(table), snapshot(dense)
    for optimizer in (table, dense):  # one by one, each would be given what the other holds
        with pytest.raises(
            fl.StaleOptimizerError, match=r"held no part of .*, which learned before. Pass the optimizer"
        ):
            plan.carry(optimizer)
    assert_untouched(table, before[0])
    assert_untouched(dense, before[1])
    plan.carry(dense, table, group=0)
    assert [p is model.embed.weight.learned for p in table.param_groups[0]["params"]] == [True]
    held = dense.param_groups[0]["params"]
    assert [id(p) for p in held] == [
        id(p) for p in (model.head.bias, model.conv.weight.learned, model.conv.bias.learned)
    ]
    assert table.state[model.embed.weight.learned]["step"].tolist() == [1, 0]


def test_what_begins_to_learn_joins_one_optimizer_only():
    model = Net()
    fl.train_only(model, {"embed.weight": fl.everything, "conv.weight": fl.everything})
    first, second = torch.optim.Adam([model.embed.weight]), torch.optim.Adam([model.conv.weight])
    plan = fl.train_only(model, {"head.bias": fl.everything})
    plan.carry(first)
    assert first.param_groups[0]["params"][0] is model.head.bias
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("Adam held no part of head.bias")):
        plan.carry(second)
