"""Interrupted and resumed equals uninterrupted, bit for bit, in one process.

A run that changes its plan midway is killed (SIGKILL) before and after the change, and resumed in a fresh process from
plain files: `torch.save` read with `weights_only=True`, safetensors, torch.distributed.checkpoint.
"""

import copy
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import frostline as fl

# torch.distributed.checkpoint says that it assumes one process, and reads storage as torch itself no longer wants it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]

RUN = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from safetensors.torch import load_file, save_file
    from torch import nn
    import frostline as fl

    folder, crash_at = Path(sys.argv[1]), int(sys.argv[2])
    kinds = {
        "adamw": (lambda ps: torch.optim.AdamW(ps, lr=0.01), torch.float32, None),
        "momentum": (lambda ps: torch.optim.SGD(ps, lr=1e-3, momentum=0.9), torch.float32, None),
        "mixed": (lambda ps: torch.optim.AdamW(ps, lr=1e-4), torch.bfloat16, torch.float32),
        "row adamw": (lambda ps: fl.optim.RowAdamW(ps, lr=0.01), torch.float32, None),
    }
    entries = torch.rand(8, 4, generator=torch.Generator().manual_seed(1)) > 0.5

    def plan(step, learned):
        all_along = {"2.bias": fl.everything, "1.*": fl.everything}
        if step <= 5:
            table, head = fl.rows([7, 3, 20], dtype=learned), fl.entries(entries, dtype=learned)
        else:
            table, head = fl.rows([20, 5, 7, 30], dtype=learned), fl.rows([0, 3], dtype=learned)
        return {"0.weight": table, "2.weight": head, **all_along}

    start, latest = 0, folder / "latest"
    if latest.exists():
        saved = folder / latest.read_text()
        start = int(saved.name)
    runs = {}
    for kind, (make, dtype, learned) in kinds.items():
        torch.manual_seed(0 if start == 0 else 1)  # a resumed run has its numbers from the files alone
        net = nn.Sequential(nn.Embedding(50, 4, sparse=kind == "row adamw"), nn.LayerNorm(4), nn.Linear(4, 8)).to(dtype)
        optimizer = make(fl.train_only(net, plan(start, learned)).parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        if start:
            net.load_state_dict(load_file(saved / f"{kind}.model"))
            fl.load_learned(net, saved / f"{kind}.learned")
            rest = torch.load(saved / f"{kind}.rest", weights_only=True)
            optimizer.load_state_dict(rest["optimizer"])
            schedule.load_state_dict(rest["schedule"])
        runs[kind] = net, optimizer, schedule
    for step in range(start, 10):
        ids = torch.randint(50, (64,), generator=torch.Generator().manual_seed(step))
        for kind, (net, optimizer, schedule) in runs.items():
            if step == 5:
                fl.train_only(net, plan(6, kinds[kind][2])).carry(optimizer)
            optimizer.zero_grad()
            net(ids).float().pow(2).sum().backward()
            optimizer.step()
            schedule.step()
        if step == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step in (2, 6, 9):
            new = folder / str(step + 1)
            new.mkdir(exist_ok=True)
            for kind, (net, optimizer, schedule) in runs.items():
                save_file(net.state_dict(), new / f"{kind}.model")
                fl.save_learned(net, new / f"{kind}.learned")
                rest = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                torch.save(rest, new / f"{kind}.rest")
            (folder / "latest.new").write_text(new.name)
            os.replace(folder / "latest.new", latest)
"""
KINDS = ("adamw", "momentum", "mixed", "row adamw")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a whole run, and that of one that was killed before and after it changed its plan."""

    def run(folder, crash_at):
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(RUN), str(folder), str(crash_at)]
        return subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    assert run(whole, -1) == 0
    for crash_at, saved in ((4, "3"), (8, "7")):
        assert run(killed, crash_at) == -signal.SIGKILL
        assert (killed / "latest").read_text() == saved
    assert run(killed, -1) == 0
    return whole, killed


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_before_and_after_a_change_of_plan_ends_with_the_bits_of_one_that_was_not(folders, kind):
    whole, killed = folders
    for file in (f"{kind}.model", f"{kind}.learned"):
        expected, actual, before = (load_file(folder / file) for folder in (whole / "10", killed / "10", whole / "3"))
        assert expected.keys() == actual.keys()
        assert all(torch.equal(actual[name], value) for name, value in expected.items())
        assert any(name in before and not before[name].equal(value) for name, value in expected.items())
    expected, actual = (torch.load(f / "10" / f"{kind}.rest", weights_only=True)["optimizer"] for f in folders)
    assert expected["param_groups"] == actual["param_groups"]
    assert len(expected["state"]) == 5
    for key, state in expected["state"].items():
        assert len(state) >= 1
        assert all(torch.equal(actual["state"][key][name], value) for name, value in state.items())


class Net(nn.Module):
    """A tied head with a bias, a norm with running statistics."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(12)

    def forward(self, ids):
        return self.norm(self.head(self.embed(ids)))


PLAN = {"embed.weight": fl.rows([7, 3, 0]), "head.bias": fl.entries(torch.arange(12) < 2), "norm.*": fl.everything}
NEXT_PLAN = {"embed.weight": fl.rows([0, 5, 7]), "head.bias": fl.everything, "norm.*": fl.everything}


def make(seed, plan=PLAN):
    torch.manual_seed(seed)
    model = Net()
    return model, torch.optim.AdamW(fl.train_only(model, plan).parameters(), lr=0.1)


def train(model, optimizer, *steps):
    for step in range(*steps):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(12, (5,), generator=generator)
        optimizer.zero_grad()
        (model(ids) * torch.randn(5, 12, generator=generator)).sum().backward()
        optimizer.step()


def assert_same_run(model, optimizer, other, other_optimizer):
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert len(ours) == len(optimizer.param_groups[0]["params"]) == 4
    for key, state in ours.items():
        assert all(torch.equal(theirs[key][name], value) for name, value in state.items())


def interrupted():
    """A run that changed its plan after two steps, stopped after four; and a run with other values to resume it."""
    model, optimizer = make(0)
    train(model, optimizer, 2)
    fl.train_only(model, NEXT_PLAN).carry(optimizer)
    train(model, optimizer, 2, 4)
    return (model, optimizer), make(1, NEXT_PLAN)


def test_torch_distributed_checkpoint_of_plain_state_dicts_resumes_bit_for_bit(tmp_path):
    (model, optimizer), (other, other_optimizer) = interrupted()
    dcp.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=tmp_path)
    train(model, optimizer, 4, 7)
    train(other, other_optimizer, 1)  # so that it has state to read into
    state = {"model": other.state_dict(), "optimizer": other_optimizer.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path)  # into the very tensors of the model
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(other, other_optimizer, 4, 7)
    assert_same_run(model, optimizer, other, other_optimizer)


OPTIONS = {
    "plain": StateDictOptions(),
    "full": StateDictOptions(full_state_dict=True),
    "full, on the CPU": StateDictOptions(full_state_dict=True, cpu_offload=True),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_torch_distributed_checkpoint_by_names_resumes_bit_for_bit(tmp_path, options):
    """Model keys are the plain ones; the keys of the optimizer's state are the names of the learned parts."""
    (model, optimizer), (other, other_optimizer) = interrupted()
    state = {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    assert list(state["model"]) == list(Net().state_dict())
    if not options.flatten_optimizer_state_dict:
        assert sorted(state["optimizer"]["state"]) == ["embed.weight_learned", "head.bias", "norm.bias", "norm.weight"]
    dcp.save(state, checkpoint_id=tmp_path)
    train(model, optimizer, 4, 7)
    state = {
        "model": get_model_state_dict(other, options=options),
        "optimizer": get_optimizer_state_dict(other, other_optimizer, options=options),
    }
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(other, state["model"], options=options)
    set_optimizer_state_dict(other, other_optimizer, state["optimizer"], options=options)
    train(other, other_optimizer, 4, 7)
    assert_same_run(model, optimizer, other, other_optimizer)


def test_a_plain_model_reads_the_checkpoint_of_a_partial_one_and_the_other_way_round(tmp_path):
    (model, _), (other, _) = interrupted()
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=tmp_path)
    plain = Net()
    for reader in (plain, other):
        state = {"model": get_model_state_dict(reader)}
        dcp.load(state, checkpoint_id=tmp_path)
        set_model_state_dict(reader, state["model"])
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in reader.state_dict().items())
        assert torch.equal(reader.embed.weight[[0, 5, 7]], model.embed.weight.learned)


def test_ignoring_frozen_parameters_leaves_learned_rows_out_and_the_next_load_says_so():
    """It drops each key whose parameter is frozen, and the plain key of a partial tensor is that of its frozen part."""
    (model, _), (other, _) = interrupted()
    options = StateDictOptions(ignore_frozen_params=True)
    state = get_model_state_dict(model, options=options)
    assert "embed.weight" not in state
    assert "norm.weight" in state
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "embed.weight"'):
        set_model_state_dict(other, state, options=options)


def mixed(seed):
    torch.manual_seed(seed)
    embed = nn.Embedding(12, 6, dtype=torch.bfloat16)
    plan = fl.train_only(embed, {"weight": fl.rows([7, 3], dtype=torch.float32)})
    optimizer = torch.optim.AdamW(plan.parameters(), lr=1e-4)
    return embed, optimizer


def steps_of(embed, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        embed(torch.arange(12)).float().pow(2).sum().backward()
        optimizer.step()


def test_float32_rows_over_a_bfloat16_table_resume_by_save_learned_and_not_by_state_dict_alone(tmp_path):
    embed, optimizer = mixed(0)
    steps_of(embed, optimizer, 3)
    fl.save_learned(embed, tmp_path / "learned.safetensors")
    save_file(embed.state_dict(), tmp_path / "model.safetensors")
    saved = copy.deepcopy(optimizer.state_dict())
    kept = embed.weight.learned.detach().clone()
    steps_of(embed, optimizer, 3)
    for exact in (True, False):
        other, other_optimizer = mixed(1)
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        if exact:
            fl.load_learned(other, tmp_path / "learned.safetensors")
        other_optimizer.load_state_dict(saved)
        assert torch.equal(other.weight.learned, kept) == exact
        steps_of(other, other_optimizer, 3)
        assert torch.equal(other.weight.learned, embed.weight.learned) == exact
        assert torch.equal(other.weight.frozen[[0, 1, 2, 4]], embed.weight.frozen[[0, 1, 2, 4]])
    assert (embed.weight.learned != kept).all()


def test_reading_the_state_dict_after_the_learned_values_keeps_their_digits(tmp_path):
    embed, optimizer = mixed(0)
    steps_of(embed, optimizer, 3)
    fl.save_learned(embed, tmp_path / "learned.safetensors")
    other, _ = mixed(1)
    other.load_state_dict(mixed(0)[0].state_dict())
    fl.load_learned(other, tmp_path / "learned.safetensors")
    other.load_state_dict(embed.state_dict())
    assert torch.equal(other.weight.learned, embed.weight.learned)
    assert not torch.equal(embed.weight.learned, embed.weight.learned.bfloat16().float())
