"""`plan.carry`: what goes on learning goes on as if nothing had happened, what is frozen stands still for good.

Two oracles. One run in which everything learns all along: entries that learn all along end with its bits. And a slow
one, which keeps the state of every entry by itself and makes a new optimizer for every plan, its state put in by hand.
The loss is one of single entries, so that no entry's gradient depends on what else learns.
"""

import copy
import functools
import gc
import re
import weakref

import hypothesis.strategies as st
import pytest
import pytorch_optimizer
import schedulefree
import torch
from hypothesis import given, settings
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import frostline as fl

V, D = 12, 6
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "sgd plain": functools.partial(torch.optim.SGD, lr=0.1),
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
    "adam foreach": functools.partial(torch.optim.Adam, lr=0.01, foreach=True),
    "adam fused": functools.partial(torch.optim.Adam, lr=0.01, fused=True),
    "adam tensor lr": functools.partial(torch.optim.Adam, lr=torch.tensor(0.01)),
    "adamw amsgrad": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1, initial_accumulator_value=0.3),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "nadam": functools.partial(torch.optim.NAdam, lr=0.01),
    "radam": functools.partial(torch.optim.RAdam, lr=0.01, weight_decay=0.1),
    "adamax": functools.partial(torch.optim.Adamax, lr=0.01),
    "rprop": functools.partial(torch.optim.Rprop, lr=0.01),
    "asgd": functools.partial(torch.optim.ASGD, lr=0.01, t0=2),
    "adadelta": functools.partial(torch.optim.Adadelta, lr=1.0),
    "row sgd": functools.partial(fl.optim.RowSGD, lr=0.1, momentum=0.9, dampening=0.1),
    "row adagrad": functools.partial(fl.optim.RowAdagrad, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.3),
    "row adamw": functools.partial(fl.optim.RowAdamW, lr=0.01, amsgrad=True),
    "row adamw step": functools.partial(fl.optim.RowAdamW, lr=0.01, step_per_row=False),
    "lion": functools.partial(pytorch_optimizer.Lion, lr=0.01),
    "schedule free": functools.partial(schedulefree.AdamWScheduleFree, lr=0.01),
}
# torch's fused kernels may round a number at the end of a tensor differently from one in its middle
FUSED = ("adam fused",)


class Net(nn.Module):
    """A table with a tied head, a convolution, a bias: nothing is computed with them but `loss_of`."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = nn.Embedding(V, D, dtype=dtype)
        self.head = nn.Linear(D, V, dtype=dtype)
        self.head.weight = self.embed.weight
        self.conv = nn.Conv1d(3, 2, 2, dtype=dtype)


NAMES = ("embed.weight", "head.bias", "conv.weight", "conv.bias")


def loss_of(model):
    """A sum of one term for each entry, each of its own steepness."""
    total = 0
    for name in NAMES:
        weight = model.get_parameter(name)
        steepness = torch.linspace(0.5, 2, weight.numel(), dtype=weight.dtype).view(weight.shape)
        total = total + (steepness * (weight - 1) * (weight - 1)).sum()
    return total


def steps(model, optimizer, count=3):
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def values(model):
    return {name: model.get_parameter(name).detach().clone() for name in NAMES}


def entries_of(name, *flat):
    shape = values(Net())[name].shape
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[list(flat)] = True
    return fl.entries(mask)


# Plans one after another; whatever learns under all of them is compared with a run in which all learns all along.
PLANS = {
    "rows, other rows in another order": [
        {"embed.weight": fl.rows([7, 3, 0, 5]), "*bias": fl.everything},
        {"embed.weight": fl.rows([5, 1, 7, 9, 3]), "*bias": fl.rows([1])},
        {"embed.weight": fl.rows([3, 7]), "*bias": fl.rows([0, 1])},
    ],
    "rows, everything, rows": [
        {"*": fl.rows([1, 0])},
        {"*": fl.everything},
        {"*": fl.rows([0])},
    ],
    "entries, other entries, rows": [
        {
            "embed.weight": entries_of("embed.weight", 3, 40, 41, 42, 43, 44),
            "conv.weight": entries_of("conv.weight", 1),
        },
        {"embed.weight": entries_of("embed.weight", 3, 42, 43, 71), "conv.weight": entries_of("conv.weight", 1, 11)},
        {"embed.weight": fl.rows([7, 0]), "conv.weight": fl.rows([0])},
        {"embed.weight": entries_of("embed.weight", 42, 3), "conv.*": fl.everything},
    ],
    "everything, entries, everything": [
        {"*": fl.everything},
        {"embed.weight": entries_of("embed.weight", 0, 5, 70), "conv.weight": fl.nothing, "*bias": fl.everything},
        {"*": fl.everything, "conv.weight": fl.rows([1])},
    ],
}


def learning(model):
    """For each tensor, a mask of what learns in the model now."""
    masks = {}
    for name in NAMES:
        weight = model.get_parameter(name)
        masks[name] = torch.full(weight.shape, weight.requires_grad)
        if isinstance(weight, fl.PartialTensor):
            masks[name] = torch.zeros(weight.shape, dtype=torch.bool).index_put_(
                weight.selected.places, torch.tensor(True)
            )
    return masks


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in FUSED])
@pytest.mark.parametrize("plans", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_goes_on_learning_ends_with_the_bits_of_a_run_in_which_it_learned_all_along(name, plans, dtype):
    torch.manual_seed(0)
    model = Net(dtype)
    oracle = copy.deepcopy(model)
    theirs = OPTIMIZERS[name](oracle.parameters())
    start, always, ours = values(model), None, None
    for selections in PLANS[plans]:
        plan = fl.train_only(model, selections)
        if ours is None:
            ours = OPTIMIZERS[name](plan.parameters())
        else:
            plan.carry(ours)
        masks = learning(model)
        always = masks if always is None else {key: always[key] & masks[key] for key in NAMES}
        before = values(model)
        steps(model, ours)
        steps(oracle, theirs)
        after = values(model)
        for key, mask in masks.items():
            assert torch.equal(after[key][~mask], before[key][~mask])
            assert (after[key] != before[key])[mask].all()
    compared = 0
    for key, mask in always.items():
        assert torch.equal(after[key][mask], values(oracle)[key][mask])
        assert (after[key] != start[key])[mask].all()
        compared += int(mask.sum())
    assert compared >= 2


def test_the_optimizers_here_are_all_of_torch_that_treat_each_number_alone():
    tried = {make.func for make in OPTIMIZERS.values()}
    others = {"Adafactor", "LBFGS", "Muon", "SparseAdam", "Optimizer"}  # each has a test of its own below
    known = {name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)} - others
    assert {cls.__name__ for cls in tried if cls.__module__.startswith("torch.optim")} == known


# The slow oracle: the state of each entry by itself. What optimizers begin with, from their documentation.
BEGINS = {
    "sgd": {"momentum_buffer": 0.0},
    "adam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "adam fused": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "adam tensor lr": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "lion": {"exp_avg": 0.0},
    "adamw amsgrad": {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0},
    "adagrad": {"sum": 0.3},
    "rmsprop": {"square_avg": 0.0, "momentum_buffer": 0.0, "grad_avg": 0.0},
    "nadam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "radam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "adamax": {"exp_avg": 0.0, "exp_inf": 0.0},
    "rprop": {"prev": 0.0, "step_size": 0.01},
    "adadelta": {"square_avg": 0.0, "acc_delta": 0.0},
    "row adamw step": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
}


class OneByOne:
    """Every entry with its value and its state, in dictionaries; for each plan a new model part and a new optimizer."""

    def __init__(self, name, model):
        self.name = name
        self.values = values(model)
        self.state = {key: {} for key in NAMES}  # tensor -> place of an entry -> its state
        self.common = {key: {} for key in NAMES}  # tensor -> state of the tensor as a whole

    def train(self, learns, order):
        """Three steps on `learns`, tensor -> places as tuples, shaped like the part that learns."""
        parts = {}
        for key in order:
            flat = [place for row in learns[key] for place in row]
            shape = (len(learns[key]), *self.values[key].shape[1:])
            if any(len(row) == 1 for row in learns[key]) and len(self.values[key].shape) > 1:
                shape = (len(flat),)
            part = torch.tensor([self.values[key][place].item() for place in flat]).view(shape)
            parts[key] = flat, nn.Parameter(part)
        optimizer = OPTIMIZERS[self.name]([part for _, part in parts.values()] or [torch.empty(0)])
        for key in NAMES:
            flat = parts[key][0] if key in parts else []
            goes_on = {place: self.state[key][place] for place in flat if place in self.state[key]}
            if goes_on:
                part = parts[key][1]
                optimizer.state[part] = dict(self.common[key])
                for field, begin in BEGINS[self.name].items():
                    column = [goes_on[place][field] if place in goes_on else begin for place in flat]
                    optimizer.state[part][field] = torch.tensor(column).view(part.shape)
        for _ in range(3):
            optimizer.zero_grad()
            total = 0
            for key, (flat, part) in parts.items():
                steepness = torch.linspace(0.5, 2, self.values[key].numel()).view(self.values[key].shape)
                steepness = torch.tensor([steepness[place].item() for place in flat]).view(part.shape)
                total = total + (steepness * (part - 1) * (part - 1)).sum()
            if parts:
                total.backward()
            optimizer.step()
        for key in NAMES:
            self.state[key], self.common[key] = {}, {}
        for key, (flat, part) in parts.items():
            state = optimizer.state[part]
            fields = {field: state[field].flatten().tolist() for field in BEGINS[self.name]}
            self.common[key] = {field: value for field, value in state.items() if field not in fields}
            for i, place in enumerate(flat):
                self.values[key][place] = part.detach().flatten()[i]
                self.state[key][place] = {field: column[i] for field, column in fields.items()}


SHAPES = {name: tuple(value.shape) for name, value in values(Net()).items()}


def places_of(kind, chosen, shape):
    """The part that learns as a list of lists of places, one list a row (or an entry)."""
    grid = torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(*shape, -1)
    if kind == "entries":
        return [[tuple(place.tolist())] for place in torch.stack(chosen, 1)]
    rows = range(shape[0]) if kind == "everything" else chosen
    return [[tuple(place.tolist()) for place in grid[row].reshape(-1, len(shape))] for row in rows]


@st.composite
def a_plan(draw):
    """Selections for `train_only`, and the same as places, made by hand."""
    selections, learns = {}, {}
    for key, shape in SHAPES.items():
        kind = draw(st.sampled_from(["everything", "nothing", "rows", "rows", "entries"]))
        if kind == "entries":
            mask = torch.tensor(draw(st.lists(st.booleans(), min_size=4, max_size=9))).repeat(V * D)
            mask = mask[: torch.Size(shape).numel()].view(shape)
            selections[key], chosen = fl.entries(mask), mask.nonzero(as_tuple=True)
            if len(chosen[0]):
                learns[key] = places_of("entries", chosen, shape)
        elif kind == "rows":
            rows = draw(st.lists(st.integers(0, shape[0] - 1), unique=True, max_size=6))
            selections[key] = fl.rows(rows)
            if rows:
                learns[key] = places_of("rows", rows, shape)
        else:
            selections[key] = getattr(fl, kind)
            if kind == "everything":
                learns[key] = places_of("everything", None, shape)
    return selections, learns


@settings(max_examples=150, deadline=None, print_blob=True)
@given(name=st.sampled_from(sorted(BEGINS)), plans=st.lists(a_plan(), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_any_sequence_of_plans_ends_with_the_bits_and_the_state_of_entries_kept_one_by_one(name, plans, seed):
    torch.manual_seed(seed)
    model = Net()
    oracle, optimizer = OneByOne(name, model), OPTIMIZERS[name](model.parameters())
    for selections, learns in plans:
        plan = fl.train_only(model, selections)
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        plan.carry(optimizer, group=0)
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in plan.parameters()]
        order = [names[id(p)].removesuffix("_learned") for p in plan.parameters()]
        if learns:
            steps(model, optimizer)
        oracle.train(learns, order)
        for key, value in values(model).items():
            assert torch.equal(value, oracle.values[key])
        for key, parameter in zip(order, plan.parameters(), strict=True):
            flat = [place for row in learns[key] for place in row]
            for field in BEGINS[name]:
                expected = torch.tensor([oracle.state[key][place][field] for place in flat])
                assert torch.equal(optimizer.state[parameter][field].flatten(), expected)
        assert len(optimizer.state) == len(order)


def two_plans(model, make, first, second, between=lambda optimizer: None):
    optimizer = make(fl.train_only(model, first).parameters())
    steps(model, optimizer)
    between(optimizer)
    plan = fl.train_only(model, second)
    return plan, optimizer


def snapshot(optimizer):
    """All that an optimizer holds: ids of its parameters, and a copy of its state and options."""
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return held, copy.deepcopy(options), {id(p): copy.deepcopy(s) for p, s in optimizer.state.items()}


def assert_untouched(optimizer, before):
    held, options, state = snapshot(optimizer)
    assert (held, options) == before[:2]
    assert state.keys() == before[2].keys()
    for key, was in before[2].items():
        assert str(state[key]) == str(was)


EMBED = {"embed.weight": fl.rows([7, 3, 0])}


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
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("conv.weight, conv.bias begins to learn")) as error:
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
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("head.bias begins to learn")):
        plan.carry(dense, table)
    before = snapshot(table), snapshot(dense)
    for one in (table, dense):  # one by one, each would be given what the other holds
        with pytest.raises(
            fl.StaleOptimizerError, match=r"held no part of .*, which learned before. Pass the optimizer"
        ):
            plan.carry(one)
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
    with pytest.raises(TypeError, match=re.escape("optimizer: int is no torch.optim.Optimizer")):
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


def test_adafactor_goes_on_where_the_same_rows_learn_and_is_refused_where_others_do():
    model = Net()
    first = {"embed.weight": fl.rows([7, 3, 0]), "conv.bias": fl.everything}
    plan, optimizer = two_plans(model, torch.optim.Adafactor, first, EMBED)
    was = [copy.deepcopy(s) for s in optimizer.state.values() if "col_var" in s]
    plan.carry(optimizer)
    (state,) = optimizer.state.values()
    assert all(torch.equal(value, was[0][key]) for key, value in state.items())
    plan = fl.train_only(model, {"embed.weight": fl.rows([3, 7])})
    before = snapshot(optimizer)
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("Adafactor: embed.weight: its state 'col_var' belongs")):
        plan.carry(optimizer)
    assert_untouched(optimizer, before)


def test_lbfgs_goes_on_where_the_same_learns_and_is_refused_where_another_does():
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
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("LBFGS: its state 'old_dirs' is of all")):
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


def test_entries_of_one_row_that_are_not_of_one_age_cannot_share_the_count_of_their_row():
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
    with pytest.raises(fl.StaleOptimizerError, match=re.escape("RowAdamW: embed.weight: its state 'step' belongs")):
        plan.carry(optimizer)


SPARSE = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "sparse adam": functools.partial(torch.optim.SparseAdam, lr=0.1),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.1),
    "row sgd": OPTIMIZERS["row sgd"],
    "row adagrad": functools.partial(fl.optim.RowAdagrad, lr=0.1, rowwise=True, lr_decay=0.1),
    "row adamw": OPTIMIZERS["row adamw"],
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad leaves them to their default
@pytest.mark.parametrize("name", SPARSE)
def test_with_sparse_gradients_rows_go_on_too(name):
    torch.manual_seed(0)
    model = nn.Embedding(V, D, sparse=True)
    oracle = copy.deepcopy(model)
    theirs = SPARSE[name](oracle.parameters())
    ours = SPARSE[name](fl.train_only(model, {"weight": fl.rows([7, 3, 0, 5])}).parameters())
    start = model.weight.detach().clone()
    for step, selection in enumerate([None, None, fl.rows([5, 1, 7, 3]), None, fl.everything, None, fl.rows([3, 7])]):
        if selection is not None:
            fl.train_only(model, {"weight": selection}).carry(ours)
        ids = torch.tensor([[7, 5, 7, 1], [3, 0, 11, 3], [7, 3, 2, 5]][step % 3])
        for module, optimizer in ((model, ours), (oracle, theirs)):
            optimizer.zero_grad()
            (module(ids) ** 2).sum().backward()
            optimizer.step()
    after = model.weight.detach().clone()
    if name == "sgd":  # torch sums up its sparse momentum when the list of it is long, so in another order
        torch.testing.assert_close(after[[7, 3]], oracle.weight.detach()[[7, 3]])
    else:
        assert torch.equal(after[[7, 3]], oracle.weight[[7, 3]])
    assert (after != start)[[7, 3, 5, 1]].all()
    assert torch.equal(after[[4, 6, 8, 9, 10]], start[[4, 6, 8, 9, 10]])


def test_a_float32_part_over_a_half_precision_table_keeps_its_state_and_its_digits():
    torch.manual_seed(0)
    oracle, model = Net(), Net(torch.bfloat16)
    model.load_state_dict(oracle.state_dict())
    oracle.load_state_dict(model.state_dict())
    theirs = torch.optim.Adam(oracle.parameters())
    learns = {"embed.weight": fl.rows([7, 3], dtype=torch.float32)}
    ours = torch.optim.Adam(fl.train_only(model, learns).parameters())
    for more in (None, {"embed.weight": fl.rows([3, 5, 7], dtype=torch.float32)}):
        if more is not None:
            fl.train_only(model, more).carry(ours)
        steps(model, ours)
        steps(oracle, theirs)
    learned = model.embed.weight.learned
    # the loss sees the joined tensor, rounded to bfloat16, so the gradients are near, not equal; the step is float32's
    assert {s.dtype for s in ours.state[learned].values()} == {torch.float32}
    torch.testing.assert_close(learned[2], oracle.embed.weight[7], atol=1e-5, rtol=0)
    kept = learned.detach().clone()
    fl.train_only(model, {"embed.weight": fl.rows([7])}).carry(ours)  # in the table's own dtype from now on
    state = ours.state[model.embed.weight.learned]
    assert state["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(model.embed.weight.learned[0], kept[2].bfloat16())
    fl.train_only(model, {"embed.weight": fl.rows([7], dtype=torch.float32)}).carry(ours)
    assert torch.equal(ours.state[model.embed.weight.learned]["exp_avg"], state["exp_avg"].float())
    steps(model, ours, 1)


def test_rows_of_a_mapped_table_go_on(tmp_path):
    from safetensors.torch import save_file

    save_file({"table": torch.randn(V, D)}, tmp_path / "table.safetensors")
    embed = fl.mapped_embedding(tmp_path / "table.safetensors")
    start = embed.weight.clone()
    dense = nn.Embedding(V, D, _weight=start.clone())
    theirs = torch.optim.Adam(dense.parameters(), lr=0.1)
    ours = torch.optim.Adam(fl.train_only(embed, {"weight": fl.rows([7, 3])}).parameters(), lr=0.1)
    for rows in (None, fl.rows([3, 5, 7])):
        if rows is not None:
            fl.train_only(embed, {"weight": rows}).carry(ours)
        for _ in range(3):
            for module, optimizer in ((embed, ours), (dense, theirs)):
                optimizer.zero_grad()
                (module(torch.arange(V)) ** 2).sum().backward()
                optimizer.step()
    after = embed.weight.joined()
    assert torch.equal(after[[7, 3]], dense.weight[[7, 3]])
    others = [0, 1, 2, 4, 6, 8, 9, 10, 11]
    assert torch.equal(after[others], start[others])
    assert (after[[7, 3, 5]] != start[[7, 3, 5]]).all()


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
def test_the_part_that_learned_last_goes_on_where_an_optimizer_holds_several_of_one_tensor(since):
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


def test_a_schedule_and_a_scaler_that_hold_the_optimizer_go_on():
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


def test_finding_what_an_optimizer_begins_with_runs_no_hook_draws_no_number_and_leaves_it_as_it_was():
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
    """One that draws numbers of its own, counts in a tensor and a list, and keeps what is nobody's under a name."""

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


def test_a_row_that_joins_under_adam_shares_the_count_and_under_row_adamw_starts_afresh():
    """Its first move: lr * (1 - b1) / sqrt(1 - b2) where the count of steps is large, lr where it is its own."""
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


def test_learned_parts_of_the_past_are_kept_by_no_one():
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
