"""Of a table that a row optimizer steps no copy is kept, and the files are the same as if one were."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import frostline as fl
from frostline.errors import CheckpointError

from .cases import raw_bytes

V, D = 200, 8
OPTIMIZERS = {
    "RowSGD": lambda parameters: fl.optim.RowSGD(parameters, lr=0.1),
    "with momentum": lambda parameters: fl.optim.RowSGD(parameters, lr=0.1, momentum=0.9),
    "RowAdagrad": lambda parameters: fl.optim.RowAdagrad(parameters, lr=0.1),
    "RowAdamW": lambda parameters: fl.optim.RowAdamW(parameters, lr=0.1),
}
PLANS = {
    "a plain table": None,
    "rows": fl.rows([3, 50, 7, 199]),
    "rows in float32": fl.rows(range(0, V, 2), dtype=torch.float32),
    "entries": fl.entries(torch.arange(V * D).view(V, D) % 5 == 0),
}


def made(plan, sparse=True, dtype=torch.float32):
    """A model, the parameters of its table that learn, and the others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, D, sparse=sparse), nn.Linear(D, 2)).to(dtype)
    if plan is not None:
        fl.train_only(model, {"0.weight": plan, "1.*": fl.everything})
    table = model[0].weight if plan is None else model[0].weight_learned
    return model, [table], list(model[1].parameters())


def step(model, optimizers, number, closure=False):
    ids = torch.randint(0, V, (6,), generator=torch.Generator().manual_seed(number))
    ids[0] = 50

    def loss():
        model.zero_grad()
        value = model(ids).float().square().sum()
        value.backward()
        return value

    if not closure:
        loss()
    for optimizer in optimizers:
        optimizer.step(loss) if closure else optimizer.step()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
def test_files_lead_to_the_same_bits_as_those_of_a_copy(tmp_path, plan, make, closure):
    model, table, rest = made(plan, dtype=torch.float32 if plan is PLANS["entries"] else torch.bfloat16)
    twin, optimizers = copy.deepcopy(model), [make(table), torch.optim.AdamW(rest, lr=0.01)]
    changes, kept = fl.Changes(model, optimizers[0]), fl.Changes(model)
    before = raw_bytes(model[0].weight)
    for number in range(6):
        step(model, optimizers, number, closure)
        if number % 2:
            saved = changes.save(tmp_path / "changes")
            assert saved.entries == kept.save(tmp_path / "kept").entries
            assert saved.entries["0.weight"] > 0
            files = load_file(tmp_path / "changes"), load_file(tmp_path / "kept")
            assert {n: raw_bytes(t) for n, t in files[0].items()} == {n: raw_bytes(t) for n, t in files[1].items()}
            assert changes.digest == kept.digest == fl.digest(model)
            assert fl.apply_changes(twin, tmp_path / "changes") == changes.digest
    assert raw_bytes(model[0].weight) == raw_bytes(twin[0].weight) != before


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_dense_gradient_and_a_step_without_any(tmp_path, plan):
    model, table, rest = made(plan, sparse=False)
    twin, optimizer = copy.deepcopy(model), fl.optim.RowSGD([*table, *rest], lr=0.1)
    changes = fl.Changes(model, optimizer)
    optimizer.step()  # no gradients
    assert changes.save(tmp_path / "nothing").entries == {}
    fl.apply_changes(twin, tmp_path / "nothing")
    step(model, [optimizer], 0)
    assert set(changes.save(tmp_path / "all").entries) == {"0.weight", "1.weight", "1.bias"}
    assert fl.apply_changes(twin, tmp_path / "all") == fl.digest(model)


WRITES = {
    "in place": lambda model: model[0].weight[10].add_(1.0),
    "uncounted": lambda model: model[0].weight.data[10].add_(1.0),
    "loaded": lambda model: model.load_state_dict({n: v + 1 for n, v in model.state_dict().items()}),
    "a row that was stepped": lambda model: model[0].weight[50].add_(1.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("plan", [None, fl.rows([3, 50, 7])], ids=["plain", "rows"])
def test_what_else_writes_to_the_table_is_found_or_saved(tmp_path, write, plan):
    model, table, _ = made(plan)
    twin, optimizer = copy.deepcopy(model), fl.optim.RowSGD(table, lr=0.1)
    changes = fl.Changes(model, optimizer)
    step(model, [optimizer], 0)
    with torch.no_grad():
        write(model)
    if write is WRITES["a row that was stepped"]:
        changes.save(tmp_path / "file")
        assert fl.apply_changes(twin, tmp_path / "file") == fl.digest(model)
        return
    with pytest.raises(CheckpointError, match=r"0\.weight: something other than its row optimizer"):
        changes.save(tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_no_copy_of_the_table_is_made(tmp_path):
    size = 4 * V * D
    largest = {}

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            given = {tensor.data_ptr() for tensor in tree_leaves(args) if is_dense(tensor)}
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if is_dense(tensor) and tensor.data_ptr() not in given:
                    largest[name] = max(largest.get(name, 0), tensor.untyped_storage().nbytes())
            return out

    def is_dense(value):
        return isinstance(value, torch.Tensor) and value.layout == torch.strided

    for name, given in (("with", True), ("without", False)):
        model, table, _ = made(None)
        optimizer = fl.optim.RowSGD(table, lr=0.1)
        with Allocations():
            changes = fl.Changes(model, *[optimizer] * given)
            step(model, [optimizer], 0)
            assert changes.save(tmp_path / name).entries["0.weight"] > 0
    assert largest["with"] < size <= largest["without"]


def test_an_optimizer_that_does_not_say_its_rows_is_refused():
    model, table, _ = made(None)
    with pytest.raises(TypeError, match=r"optimizers: SGD, but only those of fl\.optim"):
        fl.Changes(model, torch.optim.SGD(table, lr=0.1))


def test_a_dropped_object_is_not_told_of_steps_any_more():
    model, table, _ = made(None)
    optimizer = fl.optim.RowSGD(table, lr=0.1)
    changes = fl.Changes(model, optimizer)
    hooks = optimizer._rows_hooks
    assert len(hooks) == 1
    del changes
    assert len(hooks) == 0


@pytest.mark.parametrize("after", [0, 1])
def test_an_interruption_between_the_file_and_the_end_of_save_loses_nothing(tmp_path, monkeypatch, after):
    model, table, _ = made(None)
    twin, optimizer = copy.deepcopy(model), fl.optim.RowSGD(table, lr=0.1)
    changes = fl.Changes(model, optimizer)
    step(model, [optimizer], 0)
    move = fl.Changes._move
    calls = []

    def interrupted(self):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        move(self)

    monkeypatch.setattr(fl.Changes, "_move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        changes.save(tmp_path / "first")
    for number in range(after):
        step(model, [optimizer], number)  # the same rows again
        step(model, [optimizer], number + 1)
    changes.save(tmp_path / "second")
    for name in ("first", "second"):
        fl.apply_changes(twin, tmp_path / name)
    assert fl.digest(twin) == fl.digest(model)
    assert raw_bytes(twin[0].weight) == raw_bytes(model[0].weight)


def test_a_table_that_has_grown_steps_on_and_is_refused_when_it_is_saved(tmp_path):
    model, table, _ = made(None)
    optimizer = fl.optim.RowSGD(table, lr=0.1)
    changes = fl.Changes(model, optimizer)
    table[0].data = torch.cat([table[0].data, torch.ones(5, D)])
    before = table[0][V + 2].tolist()
    nn.functional.embedding(torch.tensor([V + 2]), table[0], sparse=True).sum().backward()
    optimizer.step()
    assert table[0][V + 2].tolist() != before
    with pytest.raises(CheckpointError, match=r"0\.weight: it was float32 \[200, 8\]"):
        changes.save(tmp_path / "file")
