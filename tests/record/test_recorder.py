"""A Recorder records exact values, changes nothing, stays small, and resumes with the run."""

import gc
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import frostline as fl
from frostline.record import read_record
from frostline.record.record_file import FILE

FIX = re.escape
TOO_LARGE = 'w: 360,000 values at each step; the limit is 262,144. Pass some rows, {"w": (weight, ids)}, or a norm'


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def table(rows=6, width=3):
    torch.manual_seed(0)
    return torch.nn.Embedding(rows, width)


def steps_of(layer, folder, watched, count=5, **options):
    """Train all rows that may learn; return the whole table before the first and after every step."""
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    seen = [layer.weight.detach().clone()]
    with fl.Recorder(folder, watched, **options) as recorder:
        recorder()
        for _ in range(count):
            loss = layer(torch.arange(len(layer.weight))).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder(loss=loss)
            seen.append(layer.weight.detach().clone())
    return torch.stack(seen)


def test_a_tensor_is_recorded_bit_for_bit_at_every_step(folder):
    layer = table()
    seen = steps_of(layer, folder, {"weight": layer.weight})
    recorded = read_record(folder)["weight"]
    assert (recorded.kind, recorded.steps, recorded.words) == ("tensor", list(range(6)), None)
    assert torch.equal(recorded.values, seen)
    assert (seen[0] != seen[-1]).all()


@pytest.mark.parametrize(
    "rows",
    [[4, 0, 2], torch.tensor([4, 0, 2]), np.array([4, 0, 2]), {"d": 4, "a": 0, "c": 2}],
    ids=["list", "tensor", "array", "words"],
)
@pytest.mark.parametrize(
    "selection",
    [
        fl.everything,
        fl.rows([2, 5]),
        fl.rows([5, 2, 4, 0]),
        fl.rows([1]),
        fl.entries(torch.eye(6, 3).bool()),
        fl.nothing,
    ],
    ids=["everything", "some", "all of them", "none of them", "entries", "nothing"],
)
def test_row_ids_are_those_of_the_whole_table_whatever_learns(rows, selection, folder):
    layer = torch.nn.Sequential(table())
    layer.append(torch.nn.Linear(3, 1))
    fl.train_only(layer, {"1.*": fl.everything, "0.weight": selection})
    with fl.Recorder(folder, {"rows": (layer[0].weight, rows)}) as recorder:
        optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
        before = [layer[0].weight.detach().clone()]
        recorder()
        layer(torch.arange(6)).sum().backward()
        optimizer.step()
        recorder()
        before.append(layer[0].weight.detach().clone())
    recorded = read_record(folder)["rows"]
    assert recorded.kind == "rows"
    assert recorded.words == (["d", "a", "c"] if isinstance(rows, dict) else ["row 4", "row 0", "row 2"])
    assert torch.equal(recorded.values, torch.stack(before)[:, [4, 0, 2]])
    moved = torch.stack(before)[1] != torch.stack(before)[0]
    assert bool(moved.any()) == (selection is not fl.nothing)


def test_the_precision_of_the_learned_part_is_kept_though_the_table_has_less(folder):
    layer = table().bfloat16()
    fl.train_only(layer, {"weight": fl.rows([1], dtype=torch.float32)})
    with torch.no_grad():
        layer.weight_learned.add_(1e-6)
    with fl.Recorder(folder, {"rows": (layer.weight, [1, 2]), "whole": layer.weight}) as recorder:
        recorder()
    record = read_record(folder)
    assert torch.equal(record["rows"].values[0, 0], layer.weight_learned[0])
    assert not torch.equal(record["rows"].values[0, 0], layer.weight_learned[0].bfloat16().float())
    assert torch.equal(record["rows"].values[0, 1], layer.weight.detach()[2].float())
    assert torch.equal(record["whole"].values[0, 1], layer.weight_learned[0])


def test_functions_and_numbers_are_recorded_as_float64(folder):
    layer = table()
    with fl.Recorder(
        folder, {"norm": lambda: layer.weight.norm(), "mean": lambda: float(layer.weight.mean())}
    ) as record:
        record(loss=torch.tensor([0.1], dtype=torch.bfloat16), rate=0.1, count=3)
    found = read_record(folder)
    assert {recorded.kind for recorded in found.values()} == {"scalar"}
    assert {recorded.values.dtype for recorded in found.values()} == {torch.float64}
    assert found["norm"].values.item() == layer.weight.norm().item()
    assert found["mean"].values.item() == layer.weight.mean().item()
    assert found["loss"].values.item() == torch.tensor(0.1, dtype=torch.bfloat16).item()
    assert (found["rate"].values.item(), found["count"].values.item()) == (0.1, 3)


def test_a_function_may_return_the_table_and_is_called_at_each_step(folder):
    layer = table()
    with fl.Recorder(folder, {"rows": (lambda: layer.weight, [3])}) as recorder:
        recorder()
        fl.train_only(layer, {"weight": fl.rows([3])})
        with torch.no_grad():
            layer.weight_learned.fill_(7.0)
        recorder()
    assert read_record(folder)["rows"].values[1].tolist() == [[7.0, 7.0, 7.0]]


def test_a_number_recorded_at_some_steps_has_its_own_steps(folder):
    with fl.Recorder(folder) as recorder:
        for step in range(10):
            recorder(loss=step, **({"f1": step / 10} if step % 4 == 3 else {}))
    assert read_record(folder)["f1"].steps == [3, 7]


def test_recording_changes_no_graph_no_version_counter_and_no_random_state(folder):
    layer = table()
    dropout = torch.nn.Dropout()

    def draw():
        return dropout(layer.weight) * random.random() * np.random.rand()

    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    version, bits = layer.weight._version, layer.weight.detach().clone()
    loss = layer(torch.tensor([1])).square().sum()
    with fl.Recorder(folder, {"all": layer.weight, "drawn": draw, "r": (layer.weight, [1])}) as r:
        for _ in range(3):
            r(loss=loss)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()
    assert layer.weight._version == version
    assert torch.equal(layer.weight, bits)
    assert layer.weight.grad is None
    loss.backward()  # the graph still exists
    assert layer.weight.grad[1].any()
    drawn = read_record(folder)["drawn"].values
    assert (drawn == 0).any()
    assert torch.equal(drawn[0], drawn[1])


def test_a_run_with_a_recorder_has_the_weights_of_one_without(folder):
    first, second = table(), table()
    fl.train_only(first, {"weight": fl.rows([1, 2])})
    fl.train_only(second, {"weight": fl.rows([1, 2])})
    seen = steps_of(first, folder, {"w": first.weight, "r": (first.weight, [2, 4]), "n": lambda: first.weight.norm()})
    optimizer = torch.optim.AdamW([second.weight_learned], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        second(torch.arange(6)).square().sum().backward()
        optimizer.step()
    assert torch.equal(seen[-1], second.weight.detach().clone())
    assert (seen[-1, [1, 2]] != seen[0, [1, 2]]).all()


def test_ten_thousand_steps_keep_a_thousand_points_with_the_first_and_the_last(folder):
    value = torch.zeros(2)
    with fl.Recorder(folder, {"value": value}) as recorder:
        for step in range(10_000):
            value.fill_(step)
            recorder(loss=step)
    for name, recorded in read_record(folder).items():
        assert 512 <= len(recorded.steps) <= 1024, name
        assert (recorded.steps[0], recorded.steps[-1]) == (0, 9_999)
        values = recorded.values.flatten(1)[:, 0] if recorded.values.ndim > 1 else recorded.values
        assert torch.equal(values, torch.tensor(recorded.steps).to(values))
    assert (folder / FILE).stat().st_size < 50_000


def test_large_tensors_keep_fewer_points(folder):
    value = torch.zeros(1 << 18)
    with fl.Recorder(folder, {"value": value}) as recorder:
        for _ in range(40):
            recorder()
    assert 8 <= len(read_record(folder)["value"].steps) <= 16


def test_an_interrupted_and_resumed_run_has_the_record_of_an_uninterrupted_one(folder, tmp_path):
    def run(folder, start, end, lost_from=10_000):
        value = torch.empty(2)
        with fl.Recorder(folder, {"value": value, "rows": (value, [1])}, step=start) as recorder:
            for now in range(start, end):
                value.fill_(-1 if now >= lost_from else now)
                recorder(loss=now)

    run(folder, 0, 1500, lost_from=1200)  # interrupted after 1,500 steps; the last checkpoint is of step 1,200
    run(folder, 1200, 3000)
    run(tmp_path / "whole", 0, 3000)
    resumed, whole = read_record(folder), read_record(tmp_path / "whole")
    assert list(resumed) == list(whole) == ["value", "rows", "loss"]
    for found, expected in zip(resumed.values(), whole.values(), strict=True):
        assert (found.kind, found.steps, found.words) == (expected.kind, expected.steps, expected.words)
        assert found.stride == expected.stride
        assert torch.equal(found.values, expected.values)
    assert resumed["loss"].steps[-1] == 2999


def test_a_new_run_in_the_same_folder_replaces_the_record(folder):
    for count in (5, 2):
        with fl.Recorder(folder) as recorder:
            for _ in range(count):
                recorder(loss=count)
    assert read_record(folder)["loss"].values.tolist() == [2, 2]


def test_the_record_is_written_every_ten_seconds_and_by_flush(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("frostline.record.recorder.time.monotonic", lambda: now[0])
    recorder = fl.Recorder(folder)
    assert read_record(folder) == {}
    recorder(loss=1)
    assert read_record(folder) == {}
    now[0] += 11
    recorder(loss=2)
    assert read_record(folder)["loss"].steps == [0, 1]
    recorder(loss=3)
    recorder.flush()
    assert read_record(folder)["loss"].steps == [0, 1, 2]
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_the_record_is_written_when_the_recorder_is_collected_or_the_program_ends(folder, tmp_path):
    recorder = fl.Recorder(folder)
    recorder(loss=1)
    del recorder
    gc.collect()
    assert read_record(folder)["loss"].values.tolist() == [1]
    code = f"import frostline as fl; r = fl.Recorder({str(tmp_path / 'other')!r}); r(loss=1); r(loss=2); exit(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert read_record(tmp_path / "other")["loss"].values.tolist() == [1, 2]


def test_a_forked_process_writes_nothing(folder):
    code = f"""
import os, frostline as fl
recorder = fl.Recorder({str(folder)!r})
recorder(loss=1)
child = os.fork()
if child == 0:
    raise SystemExit
os.waitpid(child, 0)
recorder(loss=2)
recorder.flush()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_record(folder)["loss"].values.tolist() == [1, 2]


def test_two_recorders_of_one_folder_are_refused_before_they_overwrite_each_other(folder):
    first, second = fl.Recorder(folder), fl.Recorder(folder)
    first(loss=1)
    second(loss=2)
    second.flush()
    with pytest.raises(
        fl.RunFolderError, match=FIX(f"{folder / FILE}: another Recorder writes it now. Use one folder")
    ):
        first.flush()
    del first
    gc.collect()  # its finalizer writes nothing either
    assert read_record(folder)["loss"].values.tolist() == [2]


def test_a_notebook_cell_that_is_run_again_replaces_the_record_of_the_first_run(folder):
    for loss in (1, 2):
        recorder = fl.Recorder(folder)  # the first one is collected here, after the second was made
        recorder(loss=loss)
    recorder.flush()
    assert read_record(folder)["loss"].values.tolist() == [2]


def test_the_record_is_written_after_an_error_in_the_loop(folder):
    def loop():
        with fl.Recorder(folder) as recorder:
            recorder(loss=1)
            recorder(loss=1 / 0)

    with pytest.raises(ZeroDivisionError):
        loop()
    assert read_record(folder)["loss"].values.tolist() == [1]


def test_nothing_but_the_record_is_in_the_folder_and_others_may_read_it(folder):
    with fl.Recorder(folder, {"value": torch.zeros(2)}) as recorder:
        recorder()
    assert [path.name for path in folder.iterdir()] == [FILE]
    other = folder / "other"
    other.touch()
    assert (folder / FILE).stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize(
    ("watched", "error", "says"),
    [
        ({"w": (torch.zeros(4, 2), [1, 4])}, fl.RowError, "w: rows: 1 of 2 ids are outside the table: 4. The"),
        ({"w": (torch.zeros(4, 2), [1, 1])}, fl.RowError, "w: rows: ids listed more than once: 1"),
        ({"w": (torch.zeros(4, 2), [])}, fl.RowError, "w: no row to record"),
        ({"w": (torch.zeros(()), [0])}, fl.RowError, "w: a tensor without dimensions has no rows"),
        ({"w": (torch.zeros(4, 2), torch.ones(5).bool())}, fl.ShapeError, "w: rows: the mask has shape (5,)"),
        ({"w": torch.zeros(600, 600)}, fl.SelectionError, TOO_LARGE),
        ({"w": (torch.zeros(600, 600), range(600))}, fl.SelectionError, "w: 360,000 values at each step"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, fl.SelectionError, "w: a torch.complex64 tensor"),
        ({"w": torch.zeros(2, device="meta")}, fl.SelectionError, "on meta cannot be recorded"),
        ({"w": torch.eye(2).to_sparse()}, fl.SelectionError, "w: a torch.float32 tensor, torch.sparse_coo"),
        ({"w": "weight"}, TypeError, "w: str cannot be recorded. Pass a tensor, a function"),
        ({"w": 1.0}, TypeError, "w: float cannot be recorded"),
        ({"w:steps": torch.zeros(2)}, fl.SelectionError, "got 'w:steps'."),
        ({"": torch.zeros(2)}, fl.SelectionError, "got ''."),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_refused_at_once_and_leaves_no_file(watched, error, says, folder):
    with pytest.raises(error, match=FIX(says)):
        fl.Recorder(folder, watched)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("watched", "scalars", "error", "says"),
    [
        ({"w": lambda: "big"}, {}, TypeError, "w: the function returned str. Let it return a tensor or a number."),
        ({"w": lambda: None}, {}, TypeError, "w: the function returned NoneType"),
        ({"w": torch.zeros(2)}, {"w": 1.0}, fl.SelectionError, "w: already recorded under this name"),
        ({}, {"loss": torch.zeros(3)}, fl.ShapeError, "loss: expected a scalar, got shape (3,). Pass its"),
        ({}, {"loss": "low"}, TypeError, "loss: expected a number, got 'low'"),
        ({"w": (lambda: torch.zeros(3, 2), [3])}, {}, fl.RowError, "w: rows: 1 of 1 ids are outside the table: 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_at_a_step_is_refused_at_that_step(watched, scalars, error, says, folder):
    recorder = fl.Recorder(folder, watched)
    with pytest.raises(error, match=FIX(says)):
        recorder(**scalars)


def test_a_shape_that_changes_is_refused(folder):
    sizes = iter([2, 3])
    recorder = fl.Recorder(folder, {"w": lambda: torch.zeros(next(sizes))})
    recorder()
    with pytest.raises(fl.ShapeError, match=FIX("w: has shape (3,) at step 1, and had (2,) at step 0.")):
        recorder()


@pytest.mark.parametrize("first", [fl.everything, fl.rows([1])], ids=["a plain tensor", "a partial tensor"])
def test_a_tensor_that_a_later_plan_replaced_is_refused(first, folder):
    layer = table()
    fl.train_only(layer, {"weight": first})
    recorder = fl.Recorder(folder, {"w": layer.weight, "r": (layer.weight, [1])})
    recorder()
    fl.train_only(layer, {"weight": fl.rows([1, 2])})
    with pytest.raises(fl.PartialTensorError, match="w: a later plan has replaced this tensor"):
        recorder()


@pytest.mark.parametrize("step", [-1, 1.0, True])
def test_an_invalid_step_is_refused(step, folder):
    with pytest.raises(ValueError, match="step: "):
        fl.Recorder(folder, step=step)


def test_no_precision_is_lost_when_a_later_plan_changes_the_dtype(folder):
    layer = table().bfloat16()
    with fl.Recorder(folder, {"rows": (lambda: layer.weight, [1])}) as recorder:
        recorder()
        fl.train_only(layer, {"weight": fl.rows([1], dtype=torch.float32)})
        with torch.no_grad():
            layer.weight_learned.add_(1e-6)
        recorder()
    values = read_record(folder)["rows"].values
    assert torch.equal(values[1, 0], layer.weight_learned[0])
    assert torch.equal(values[0, 0].bfloat16().float(), values[0, 0])
    assert (values[1] != values[0]).any()


def test_a_call_that_raises_counts_as_a_step_and_the_record_stays_readable(folder):
    values = iter([1.0, None, 3.0])
    with fl.Recorder(folder, {"first": torch.zeros(1), "second": lambda: next(values)}) as recorder:
        recorder()
        with pytest.raises(TypeError):
            recorder()
        recorder()
    record = read_record(folder)
    assert record["first"].steps == [0, 1, 2]
    assert (record["second"].steps, record["second"].values.tolist()) == ([0, 2], [1, 3])


def test_resuming_with_another_shape_or_other_words_is_refused(folder):
    with fl.Recorder(folder, {"w": torch.zeros(2), "r": (torch.zeros(3, 1), {"a": 0})}) as recorder:
        recorder()
    other = fl.Recorder(folder, {"w": torch.zeros(3)}, step=1)
    with pytest.raises(fl.ShapeError, match=FIX("w: has shape (3,) at step 1, and had (2,) at step 0.")):
        other()
    other = fl.Recorder(folder, {"r": (torch.zeros(3, 1), {"b": 0})}, step=1)
    with pytest.raises(fl.RunFolderError, match=FIX("'r' was recorded with another kind or other words. Name another")):
        other()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(fl.RunFolderError, match=FIX(f"{tmp_path / 'file'}: cannot be made: ")):
        fl.Recorder(tmp_path / "file")


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(
        fl.RunFolderError, match=FIX(f"{tmp_path / FILE}: no such file. Name a folder that fl.Recorder")
    ):
        read_record(tmp_path)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def damage_other(path):
    save_file({"w": torch.zeros(2)}, path)


def damage_steps(path):
    rewrite(path, {"w:steps": torch.tensor([3, 3])})


def damage_length(path):
    rewrite(path, {"w:steps": torch.tensor([3])})


def damage_words(path):
    text = path.read_bytes()
    path.write_bytes(text.replace(rb"[\"a\", \"b\"]", rb"[\"a\", 12345678]"[: len(rb"[\"a\", \"b\"]")]))


def damage_empty(path):
    path.write_bytes(b"")


def rewrite(path, changes):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | changes, path, metadata)


@pytest.mark.parametrize("damage", [damage_cut, damage_other, damage_steps, damage_length, damage_words, damage_empty])
def test_a_damaged_record_is_one_line_with_its_path(damage, folder):
    with fl.Recorder(folder, {"w": torch.zeros(2), "r": (torch.zeros(3, 1), {"a": 0, "b": 1})}) as recorder:
        recorder()
        recorder()
    damage(folder / FILE)
    with pytest.raises(fl.RunFolderError, match=f"^{FIX(str(folder / FILE))}: damaged: ") as caught:
        read_record(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(fl.RunFolderError):
        fl.Recorder(folder, step=3)


def test_in_a_distributed_run_only_rank_0_writes(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with fl.Recorder(folder, {"w": lambda: calls.append(1) or 1.0}) as recorder:
        recorder(loss=1)
    assert calls == [1]
    assert list(folder.iterdir()) == []
