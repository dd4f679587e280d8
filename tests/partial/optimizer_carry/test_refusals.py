"""What cannot be carried raises an error, and the optimizer has not changed."""

import copy
import re

import pytest
import pytorch_optimizer
import torch

import frostline as fl

from .cases import EMBED, D, Net, assert_untouched, entries_of, loss_of, snapshot, steps, two_plans, values

WRONG = {
    "another model's": (lambda model: torch.optim.Adam(Net().parameters()), "Adam holds no parameter of this model"),
    "an average": (
        lambda model: pytorch_optimizer.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1)),
        "Lookahead wraps another optimizer, which has the state. Pass that one: optimizer.optimizer",
    ),
}


@pytest.mark.parametrize(("make", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_optimizer_is_refused_and_left_as_it_was(make, says):
    model = Net()
    plan = fl.train_only(model, EMBED)
    optimizer = make(model)
    before = snapshot(optimizer)
    with pytest.raises(fl.StaleOptimizerError, match=re.escape(says)):
        plan.carry(optimizer)
    assert_untouched(optimizer, before)
    with pytest.raises(TypeError, match=re.escape("optimizer: expected a torch.optim.Optimizer, got int")):
        plan.carry(3)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)


def lbfgs_steps(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)


def test_adafactor_is_carried_where_the_same_rows_learn_and_refused_where_others_do():
    model = Net()
    first = {"embed.weight": fl.rows([7, 3, 0]), "conv.bias": fl.everything}
    plan, optimizer = two_plans(model, torch.optim.Adafactor, first, EMBED)
    was = [copy.deepcopy(s) for s in optimizer.state.values() if "col_var" in s]
    plan.carry(optimizer)
    (state,) = optimizer.state.values()
    assert all(torch.equal(value, was[0][key]) for key, value in state.items())
    plan = fl.train_only(model, {"embed.weight": fl.rows([3, 7])})
    before = snapshot(optimizer)
    with pytest.raises(fl.StaleOptimizerError, match=r"Adafactor: embed\.weight: its state 'col_var' does not"):
        plan.carry(optimizer)
    assert_untouched(optimizer, before)


def test_lbfgs_is_carried_where_the_same_entries_learn_and_refused_where_others_do():
    model = Net()
    oracle = copy.deepcopy(model)
    optimizer, theirs = (
        lbfgs(fl.train_only(m, EMBED | {"conv.bias": fl.everything}).parameters()) for m in (model, oracle)
    )
    lbfgs_steps(model, optimizer)
    fl.train_only(model, EMBED | {"conv.bias": fl.everything}).carry(optimizer)
    for _ in range(2):
        lbfgs_steps(model, optimizer)
    for _ in range(3):
        lbfgs_steps(oracle, theirs)
    assert all(torch.equal(value, values(oracle)[key]) for key, value in values(model).items())
    plan = fl.train_only(model, EMBED)  # the history's own parameter, the first, is the same
    before = snapshot(optimizer)
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("LBFGS: it keeps one history ('old_dirs')")):
        plan.carry(optimizer)
    assert_untouched(optimizer, before)


def test_muons_momentum_follows_its_rows_and_single_entries_are_refused():
    model = Net()
    plan, optimizer = two_plans(model, torch.optim.Muon, EMBED, {"embed.weight": fl.rows([0, 5, 7])})
    (was,) = (state["momentum_buffer"] for state in optimizer.state.values())
    plan.carry(optimizer)
    (now,) = (state["momentum_buffer"] for state in optimizer.state.values())
    assert torch.equal(now, torch.stack([was[2], torch.zeros(D), was[0]]))
    assert (was != 0).all()
    before = values(model)["embed.weight"]
    steps(model, optimizer)
    moved = (values(model)["embed.weight"] != before).all(1)
    assert moved.nonzero().flatten().tolist() == [0, 5, 7]
    plan = fl.train_only(model, {"embed.weight": entries_of("embed.weight", 0, 1)})
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("Muon does not take what learns now, torch.float32 of")):
        plan.carry(optimizer)


def test_entries_of_one_row_with_different_step_counts_cannot_become_that_row():
    model = Net()
    fl.train_only(model, {"embed.weight": entries_of("embed.weight", 0, 1)})
    optimizer = fl.optim.RowAdamW([model.embed.weight.learned])
    steps(model, optimizer)
    fl.train_only(model, {"embed.weight": entries_of("embed.weight", 0, 1, 7)}).carry(optimizer)
    steps(model, optimizer)
    assert optimizer.state[model.embed.weight.learned]["step"].tolist() == [6, 6, 3]
    fl.train_only(model, {"embed.weight": fl.rows([2, 1, 0])}).carry(optimizer)
    assert optimizer.state[model.embed.weight.learned]["step"].tolist() == [0, 3, 6]
    fl.train_only(model, {"embed.weight": entries_of("embed.weight", 0)}).carry(optimizer)
    steps(model, optimizer)
    fl.train_only(model, {"embed.weight": entries_of("embed.weight", 0, 1)}).carry(optimizer)
    plan = fl.train_only(model, {"embed.weight": fl.rows([0])})
    with pytest.raises(fl.StaleOptimizerError, match=r"RowAdamW: embed\.weight: its state 'step' does not"):
        plan.carry(optimizer)


def test_a_model_that_is_sharded_over_processes_is_refused():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = Net()
        plan = fl.train_only(model, EMBED)
        torch.distributed.fsdp.fully_shard(model)
        optimizer = torch.optim.Adam(plan.parameters())
        before = snapshot(optimizer)
        with pytest.raises(fl.PartialTensorError, match="is sharded"):
            plan.carry(optimizer)
        assert_untouched(optimizer, before)
    finally:
        torch.distributed.destroy_process_group()
