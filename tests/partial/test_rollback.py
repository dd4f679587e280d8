"""Interrupted at any line, a plan, a merge, a load or a carry leaves the model and its optimizers as they were."""

import linecache
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline import partial
from frostline.partial import learned_file

FOLDER = str(Path(partial.__file__).parent)


class Net(nn.Module):
    """A tied head, a norm, an LSTM that caches its weights, and missing rows marked by NaN."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.norm, self.lstm = nn.BatchNorm1d(4), nn.LSTM(4, 4)
        self.other = nn.Linear(4, 3)

    def forward(self, ids):
        hidden = self.lstm(self.norm(self.embed(ids)))[0]
        return self.head(hidden).sum() + self.other(hidden).square().sum()


FIRST = {"embed.weight": fl.rows([1, 2]), "lstm.weight_ih_l0": fl.rows([0]), "other.*": fl.everything}
SECOND = {"head.weight": fl.rows([3, 2]), "other.weight": fl.entries(torch.eye(3, 4) > 0), "norm.*": fl.nothing}


def make(first):
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.embed.weight[3] = torch.nan
        model.other.weight[0, 0] = torch.nan
    if first:
        fl.train_only(model, FIRST)
        with torch.no_grad():
            model.embed.weight_learned += 1
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, index)
    return model


def bits(tensor):
    return None if tensor is None else tensor.detach().clone().view(torch.int32)


def same(a, b):
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def state_of(model):
    """Return everything that a plan changes: values by name, and the identities and settings of all that exists."""
    values = {name: bits(value.float()) for name, value in model.state_dict().items()}
    parameters = [(n, id(p), p.requires_grad, bits(p.grad)) for n, p in model.named_parameters(remove_duplicate=False)]
    modules = [(type(m), m.training, sorted(m.__dict__), repr(m.__dict__.get("_frostline"))) for m in model.modules()]
    return values, parameters, modules


def assert_same_state(model, before):
    values, parameters, modules = state_of(model)
    assert values.keys() == before[0].keys()
    assert all(torch.equal(values[name], value) for name, value in before[0].items())
    assert [p[:3] for p in parameters] == [p[:3] for p in before[1]]
    assert all(same(now[3], then[3]) for now, then in zip(parameters, before[1], strict=True))
    assert modules == before[2]


def interrupted(call, line):
    """Call `call`, and raise KeyboardInterrupt at the given line that runs in the package; return whether it was."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(FOLDER) or "rollback" in frame.f_code.co_filename:
            return None
        # Not at the line of a `with`, which is also run when its block ends: Python would not call `__exit__`. Nor,
        # from Python 3.12 on, at the end of a list comprehension in its block.
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not text.startswith(("with ", ")", "before = [")):
            count += 1
            if count == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def train_a_step(model, learned):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    optimizer.zero_grad()
    before = model.embed.weight.detach().clone()
    model(torch.tensor([[0, 1, 2, 4]])).backward()
    optimizer.step()
    moved = (model.embed.weight.detach() != before).any(1) & before.isfinite().all(1)
    assert moved.nonzero().flatten().tolist() == learned


CALLS = {
    "a first plan": (False, lambda model: fl.train_only(model, SECOND, freeze_running_stats=True)),
    "a second plan": (True, lambda model: fl.train_only(model, SECOND, freeze_running_stats=True)),
    "a merge": (True, fl.merge),
}


@pytest.mark.parametrize(("first", "call"), CALLS.values(), ids=CALLS.keys())
def test_interrupted_at_any_line_the_model_is_as_it_was(first, call):
    model, line = make(first), 1
    before = state_of(model)
    while interrupted(lambda: call(model), line):
        assert_same_state(model, before)
        line += 1 if line < 40 else 7
    assert line > 100  # the last round was not interrupted, and changed the model
    after = state_of(model)
    assert [p[1] for p in after[1]] != [p[1] for p in before[1]]


def test_after_an_interrupted_plan_the_earlier_plan_trains_on():
    model = make(first=True)
    for line in range(1, 2000, 13):
        if not interrupted(lambda: fl.train_only(model, SECOND), line):
            break
    model = make(first=True)
    assert interrupted(lambda: fl.train_only(model, SECOND), line - 13)
    with torch.no_grad():
        model.embed.weight[3] = 0.5
        model.other.weight[0, 0] = 0.5
    train_a_step(model, learned=[1, 2])


def test_a_carry_that_is_interrupted_leaves_the_optimizer_as_it_was():
    model = make(first=True)
    with torch.no_grad():
        model.embed.weight[3] = 0.5
        model.other.weight[0, 0] = 0.5
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.tensor([[0, 1, 2, 4]])).backward()
    optimizer.step()
    plan = fl.train_only(model, SECOND)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    state = {key: dict(value) for key, value in optimizer.state.items()}
    line = 1
    while interrupted(lambda: plan.carry(optimizer), line):
        assert all(
            a is b
            for now, then in zip(optimizer.param_groups, groups, strict=True)
            for a, b in zip(now["params"], then, strict=True)
        )
        assert optimizer.state.keys() == state.keys()
        assert all(optimizer.state[key][name] is value for key in state for name, value in state[key].items())
        line += 1 if line < 20 else 11
    assert line > 100
    assert optimizer.param_groups[0]["params"][0] is not groups[0][0]
    train_a_step(model, learned=[2, 3])


LOADS = {
    "into a plain model": lambda model: None,
    "into one with the same plan": lambda model: fl.train_only(model, FIRST),
    "into one where others learn": lambda model: fl.train_only(model, SECOND),
    "into one where entries learn": lambda model: fl.train_only(
        model, {"embed.weight": fl.entries(torch.eye(6, 4) > 0), "lstm.weight_ih_l0": fl.rows([0, 1])}
    ),
    "into one where all learns": lambda model: fl.train_only(model, {"*": fl.everything}),
}


@pytest.mark.parametrize("plan", LOADS.values(), ids=LOADS.keys())
def test_loading_what_was_learned_is_all_or_nothing(plan, tmp_path):
    saved = make(first=True)
    with torch.no_grad():
        for parameter in saved.parameters():
            if parameter.requires_grad:
                parameter.uniform_(-1, 1)
        saved.norm.running_mean += 1
        saved.norm.num_batches_tracked += 7
    fl.save_learned(saved, tmp_path / "rows.safetensors")
    model, line = make(first=False), 1
    plan(model)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, index)
    held = model.embed.weight
    with torch.no_grad():
        model.embed.weight[0] = 0.25
    before = state_of(model)
    while interrupted(lambda: load_quietly(model, tmp_path / "rows.safetensors"), line):
        assert_same_state(model, before)
        assert same(bits(held), before[0]["embed.weight"])
        line += 1 if line < 40 else 5
    assert line > 100  # the last round was not interrupted, and loaded the values
    expected = saved.state_dict()
    now = model.state_dict()
    assert torch.equal(now["embed.weight"][[1, 2]], expected["embed.weight"][[1, 2]])
    assert torch.equal(now["other.weight"], expected["other.weight"])
    assert torch.equal(now["norm.num_batches_tracked"], expected["norm.num_batches_tracked"])
    assert not torch.equal(bits(now["norm.running_mean"]), before[0]["norm.running_mean"])


def load_quietly(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the base differs
        fl.load_learned(model, path, strict=False)


def test_an_error_in_the_middle_of_loading_undoes_what_was_loaded(tmp_path, monkeypatch):
    saved, model = make(first=True), make(first=True)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(1) if parameter.requires_grad else None
    fl.save_learned(saved, tmp_path / "rows.safetensors")
    before, calls = state_of(model), []
    write = learned_file._write_values

    def fails(*args):
        write(*args)
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(learned_file, "_write_values", fails)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        load_quietly(model, tmp_path / "rows.safetensors")
    assert_same_state(model, before)
    monkeypatch.undo()
    load_quietly(model, tmp_path / "rows.safetensors")
    assert torch.equal(model.embed.weight_learned, saved.embed.weight_learned)


def test_loading_into_a_table_over_read_only_memory_is_undone_without_a_write_to_it(tmp_path):
    array = np.ones((6, 4), dtype=np.float32)
    array.setflags(write=False)
    saved = nn.ModuleDict({"a": nn.Embedding(6, 4), "b": nn.Linear(4, 2)})
    fl.train_only(saved, {"a.weight": fl.rows([1]), "b.*": fl.everything})
    fl.save_learned(saved, tmp_path / "rows.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not writable", which torch says once in a process
        model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(torch.from_numpy(array)), "b": nn.Linear(4, 2)})
    before, line = state_of(model), 1
    while interrupted(lambda: load_quietly(model, tmp_path / "rows.safetensors"), line):
        assert_same_state(model, before)
        line += 3
    assert (array == 1).all()
    assert torch.equal(model["a"].weight[1], saved["a"].weight[1])


class Sealed(nn.Module):
    """A module that refuses new attributes once it is made."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))
        self.__dict__["sealed"] = True

    def __setattr__(self, name, value):
        if self.__dict__.get("sealed") and name != "training":
            raise AttributeError(f"{name}: sealed")
        super().__setattr__(name, value)

    def forward(self, x):
        return x @ self.weight


def test_a_module_that_refuses_new_attributes_can_be_planned_and_merged():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "sealed": Sealed()})
    plan = fl.train_only(model, {"a.weight": fl.rows([0]), "sealed.weight": fl.rows([1])})
    optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)
    model["sealed"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moved = model["sealed"].weight.detach() != 1
    assert moved.any(1).tolist() == [False, True, False]
    fl.merge(model)
    assert type(model["sealed"]) is Sealed
    assert torch.equal(model["sealed"].weight != 1, moved)


def test_an_error_of_a_modules_own_train_method_undoes_the_plan():
    class Fragile(nn.BatchNorm1d):
        def train(self, mode=True):
            if not mode:
                raise ArithmeticError("cannot be evaluated")
            return super().train(mode)

    model = nn.Sequential(nn.Linear(2, 2), Fragile(2))
    before = state_of(model)
    with pytest.raises(ArithmeticError, match="cannot be evaluated"):
        fl.train_only(model, {"0.weight": fl.rows([1])}, freeze_running_stats=True)
    assert_same_state(model, before)
    model(torch.ones(3, 2)).sum().backward()
    assert model[0].weight.grad.shape == (2, 2)
