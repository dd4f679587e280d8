"""Plans that were not carried, parts that no longer learn, and schedulers and scalers that hold an optimizer."""

import copy
import gc
import re
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import frostline as fl

from .cases import EMBED, OPTIMIZERS, D, Net, V, assert_untouched, loss_of, snapshot, steps, two_plans, values


def test_plans_between_and_a_merge_may_go_by_before_the_optimizer_is_carried():
    model = Net()
    plan, optimizer = two_plans(model, OPTIMIZERS["adam"], EMBED, {"conv.bias": fl.everything})
    plan = fl.train_only(model, {"embed.weight": fl.rows([3, 1])})
    (was,) = (s["exp_avg"] for s in optimizer.state.values())
    plan.carry(optimizer)
    assert torch.equal(optimizer.state[model.embed.weight.learned]["exp_avg"][0], was[1])
    fl.merge(model)
    with pytest.raises(
        fl.StaleOptimizerError, match=re.escape("Adam held no part of head.bias, conv.weight, conv.bias")
    ):
        plan.carry(optimizer)
    plan.carry(optimizer, group=0)
    assert type(model.embed) is nn.Embedding
    assert torch.equal(optimizer.state[model.embed.weight]["exp_avg"][3], was[1])
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    before = values(model)
    steps(model, optimizer)
    assert all((value != before[key]).all() for key, value in values(model).items())


def test_an_optimizer_that_also_holds_frozen_parts_gives_them_up():
    model = Net()
    fl.train_only(model, EMBED)
    optimizer = torch.optim.Adam(model.parameters())  # all of them, frozen or not
    steps(model, optimizer)
    (was,) = (s["exp_avg"] for s in optimizer.state.values())
    plan = fl.train_only(model, {"embed.weight": fl.everything})
    plan.carry(optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(model.embed.weight)]
    assert torch.equal(optimizer.state[model.embed.weight]["exp_avg"][[7, 3, 0]], was)


@pytest.mark.parametrize("since", [0, 2])
def test_the_part_that_learned_last_continues_where_an_optimizer_holds_several_of_one_tensor(since):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer)
    whole = optimizer.state[model.embed.weight]
    fl.train_only(model, EMBED)
    optimizer.add_param_group({"params": [model.embed.weight.learned], "lr": 0.5})  # by hand, beside the whole tensor
    steps(model, optimizer, since)
    part = optimizer.state.get(model.embed.weight.learned)
    fl.train_only(model, {"embed.weight": fl.rows([0, 1])}).carry(optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == ([0, 1] if since else [1, 0])
    state = optimizer.state[model.embed.weight.learned]
    assert state["step"].item() == (since or 3)
    assert torch.equal(state["exp_avg"][0], part["exp_avg"][2] if since else whole["exp_avg"][0])
    assert (state["exp_avg"][0] != 0).all()


def test_a_part_that_was_frozen_by_hand_is_given_up_and_carrying_twice_changes_nothing():
    model = Net()
    plan, optimizer = two_plans(model, OPTIMIZERS["adam"], EMBED | {"conv.bias": fl.everything}, EMBED)
    plan.carry(optimizer)
    state, before = optimizer.state[model.embed.weight.learned], snapshot(optimizer)
    plan.carry(optimizer)
    assert_untouched(optimizer, before)
    assert optimizer.state[model.embed.weight.learned] is state
    model.embed.weight.requires_grad_(False)
    plan.carry(optimizer)
    assert plan.parameters() == optimizer.param_groups[0]["params"] == []
    assert not optimizer.state


def test_a_schedule_and_a_scaler_that_hold_the_optimizer_still_work():
    model = Net()
    optimizer = torch.optim.SGD(fl.train_only(model, EMBED).parameters(), lr=1.0, momentum=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for selection in (None, fl.rows([7]), fl.rows([7, 2])):
        if selection is not None:
            fl.train_only(model, {"embed.weight": selection}).carry(optimizer)
        before = model.embed.weight.learned.detach().clone()
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        assert (model.embed.weight.learned != before).all()
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_finding_the_initial_state_runs_no_hook_draws_no_number_and_changes_no_optimizer():
    model, called = Net(), []
    plan, optimizer = two_plans(model, OPTIMIZERS["adam tensor lr"], EMBED, {"embed.weight": fl.rows([3, 1])})
    optimizer.register_step_pre_hook(lambda *args: called.append("own"))
    handle = register_optimizer_step_post_hook(lambda *args: called.append("every"))
    random, before = torch.get_rng_state(), values(model)
    try:
        plan.carry(optimizer)
    finally:
        handle.remove()
    assert called == []
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in values(model).items())
    state = optimizer.state[model.embed.weight.learned]
    assert (type(state), state["step"].item()) == (dict, 3.0)
    steps(model, optimizer, 1)
    assert called == ["own"]


class Random(torch.optim.Optimizer):
    """An optimizer that draws random numbers, counts in a tensor and a list, and keeps state under a name."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "count": torch.zeros(())})
        self.generator, self.seen = torch.Generator().manual_seed(5), []
        self.state["all"] = {"steps": 0}

    @torch.no_grad()
    def step(self):
        self.state["all"]["steps"] += 1
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                self.seen.append(p.shape)
                state = self.state[p]
                if not state:
                    self.state[p] = state = {
                        "noise": torch.rand(p.shape, generator=self.generator) + torch.rand(p.shape)
                    }
                p.sub_(state["noise"])


def test_an_optimizer_that_keeps_its_own_counts_and_generators_keeps_them():
    model = Net()
    optimizer = Random(fl.train_only(model, EMBED).parameters())
    steps(model, optimizer)
    (was,) = (s["noise"] for p, s in optimizer.state.items() if p != "all")
    random, own = torch.get_rng_state(), optimizer.generator.get_state()
    fl.train_only(model, {"embed.weight": fl.rows([1, 7])}).carry(optimizer)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(optimizer.generator.get_state(), own)
    assert (optimizer.state["all"], len(optimizer.seen)) == ({"steps": 3}, 3)
    assert optimizer.param_groups[0]["count"].item() == 3
    noise = optimizer.state[model.embed.weight.learned]["noise"]
    assert torch.equal(noise[1], was[0])
    assert (noise[0] > 0).all()


def test_a_new_row_shares_the_step_count_under_adam_and_starts_at_0_under_row_adamw():
    """The first update: lr * (1 - b1) / sqrt(1 - b2) if the shared step count is large, lr if the row has its own."""
    moves = {}
    for make in (torch.optim.Adam, fl.optim.RowAdamW):
        model = nn.Embedding(V, D)
        optimizer = make(fl.train_only(model, {"weight": fl.rows([1])}).parameters(), lr=1e-3)
        if make is fl.optim.RowAdamW:
            optimizer.param_groups[0]["weight_decay"] = 0.0

        def step(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            model(torch.arange(V)).sum().backward()
            optimizer.step()

        for _ in range(5000):
            step()
        fl.train_only(model, {"weight": fl.rows([1, 2])}).carry(optimizer)
        before = model.weight[2].detach().clone()
        step()
        moves[make.__name__] = (before - model.weight[2]).max().item()
    assert moves["Adam"] == pytest.approx(3.16e-3, rel=0.01)
    assert moves["RowAdamW"] == pytest.approx(1e-3, rel=0.01)


def test_nothing_keeps_learned_parts_of_earlier_plans_alive():
    model = Net()
    plan, optimizer = two_plans(model, OPTIMIZERS["adam"], EMBED, {"embed.weight": fl.rows([7])})
    retired = weakref.ref(optimizer.param_groups[0]["params"][0])
    gc.collect()
    assert retired() is not None  # the optimizer has it
    plan.carry(optimizer)
    gc.collect()
    assert retired() is None
    _, optimizer = two_plans(model, OPTIMIZERS["adam"], EMBED, {"embed.weight": fl.rows([7])})
    retired = weakref.ref(optimizer.param_groups[0]["params"][0])
    del optimizer, plan, _
    gc.collect()
    assert retired() is None


# torch's compiler hides this warning of its own; as an error it would stop the compilation
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_follows_its_plans():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, 4))
    eager = copy.deepcopy(model)
    for module, call in ((model, torch.compile(model, backend="aot_eager", fullgraph=True)), (eager, eager)):
        plan = fl.train_only(module, {"0.weight": fl.rows([7, 3])})
        optimizer = torch.optim.Adam(plan.parameters(), lr=0.1)
        for more in (None, {"0.weight": fl.rows([3, 5]), "1.weight": fl.rows([1])}, {"*": fl.everything}):
            if more is not None:
                fl.train_only(module, more).carry(optimizer)
            before = {name: value.clone() for name, value in module.state_dict().items()}
            optimizer.zero_grad()
            call(torch.arange(V)).pow(2).sum().backward()
            optimizer.step()
            moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
            assert len(moved) == (1 if more is None else len(more) if len(more) > 1 else 3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[name])


def test_schedule_free_entries_that_join_begin_at_their_own_values():
    model = Net()
    optimizer = OPTIMIZERS["schedule free"](fl.train_only(model, EMBED).parameters())
    steps(model, optimizer)
    before = values(model)["embed.weight"]
    fl.train_only(model, {"embed.weight": fl.rows([7, 1])}).carry(optimizer)
    z = optimizer.state[model.embed.weight.learned]["z"]
    assert torch.equal(z[1], before[1])
    assert (z[0] != before[7]).any()
