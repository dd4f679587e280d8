"""Several processes train the tagger that a single process would have trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import frostline as fl
from frostline import tagger
from frostline.tagger.training.data_parallel import DataParallelGroup

SCRIPT = Path(__file__).with_name("train_distributed.py")
Launch = Callable[..., str]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_distributed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _alone(dropout: float) -> tagger.TrainingRun:
    run: tagger.TrainingRun = _script().train(dropout, distributed=False)
    return run


def _found(launch: Launch, folder: Path, processes: int, *arguments: object) -> list[dict[str, Any]]:
    launch(SCRIPT, folder, *arguments, processes=processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize("processes", [2, 3])
def test_without_dropout_a_group_takes_the_steps_of_one_process_but_for_rounding(
    launch: Launch, tmp_path: Path, processes: int
) -> None:
    alone = _alone(dropout=0.0)
    for found in _found(launch, tmp_path, processes, 0.0):
        losses = torch.tensor([epoch.loss for epoch in alone.history])
        torch.testing.assert_close(found["losses"], losses, rtol=1e-4, atol=1e-6)
        for name, value in alone.tagger.model.state_dict().items():
            torch.testing.assert_close(found["state"][name], value, rtol=5e-3, atol=5e-4)
        assert found["moved"].tolist() == [0, alone.audit.learned_rows_moved]
        assert found["losses"][-1] < 0.95 * found["losses"][0]


def test_every_process_ends_with_the_same_bits_and_dropout_draws_differ(launch: Launch, tmp_path: Path) -> None:
    first, second = _found(launch, tmp_path, 2, 0.3)
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    assert first["losses"].tolist() == second["losses"].tolist()
    assert first["losses"][-1] < first["losses"][0]
    assert first["losses"].tolist() != [epoch.loss for epoch in _alone(dropout=0.3).history]


def test_dropout_is_seeded_by_seed_process_and_step() -> None:
    def drawn(seed: int, step: int, rank: int) -> float:
        group = DataParallelGroup(distributed=False)
        group.rank, group.size = rank, 2
        group.seed_dropout(seed, step)
        return torch.rand(()).item()

    with torch.random.fork_rng(devices=[]):
        each = [drawn(seed, step, rank) for seed in (0, 1) for step in (0, 1, 2) for rank in (0, 1)]
        assert len(set(each)) == 12
        assert drawn(0, 1, 1) == each[3]
        before = torch.get_rng_state()
        DataParallelGroup(distributed=False).seed_dropout(0, 0)  # a single process is not reseeded
        assert torch.equal(torch.get_rng_state(), before)


def test_a_group_interrupted_twice_and_resumed_ends_with_the_bits_of_one_that_was_not(
    launch: Launch, tmp_path: Path
) -> None:
    whole = _found(launch, tmp_path, 2, 0.3)
    for rank in range(2):
        (tmp_path / f"{rank}.pt").unlink()
    for steps in (7, 40):  # of 80, 20 an epoch
        launch(SCRIPT, tmp_path, 0.3, tmp_path / "c", steps, processes=2)
        assert not list(tmp_path.glob("*.pt"))
    checkpoint = (tmp_path / "c").read_bytes()
    for resumed in _found(launch, tmp_path, 2, 0.3, tmp_path / "c", 0):
        assert all(torch.equal(resumed["state"][name], value) for name, value in whole[0]["state"].items())
        assert resumed["losses"].tolist() == whole[0]["losses"].tolist()
    assert whole[0]["losses"][-1] < whole[0]["losses"][0]
    (tmp_path / "c").write_bytes(checkpoint)
    with pytest.raises(fl.RunFolderError, match="a training with processes 2, and here it is 1"):
        _script().train(0.3, distributed=False, checkpoint=tmp_path / "c", resume=True)


def test_the_command_under_torchrun_prints_once_and_saves_one_tagger(launch: Launch, tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(10)]
    text = "".join(f"{word}\t{'B-x' if word < 'w5' else 'O'}\n\n" for word in 3 * [*words, "none"])
    (tmp_path / "data.conll").write_text(text, encoding="utf-8")
    (tmp_path / "toy.vec").write_text("".join(f"{word} 1 {i} -1\n" for i, word in enumerate(words)), encoding="utf-8")
    data, vectors, out = tmp_path / "data.conll", tmp_path / "toy.vec", tmp_path / "model"
    command = ["-m", "frostline", "tagger", "train", "--train", data, "--dev", data, "--vectors", vectors, "--out", out]
    printed = launch(*command, "--epochs", "2", processes=2).splitlines()
    assert [line.split()[1] for line in printed if line.startswith("epoch")] == ["1/2", "2/2"]
    assert sum(line.startswith("audit    0 of 33 frozen entries moved") for line in printed) == 1
    assert tagger.Tagger.load(out).tags == ["O", "B-x"]
    with pytest.raises(AssertionError, match=r"training.safetensors: no such file, so nothing to resume"):
        launch(*command, "--resume", processes=2)
    with pytest.raises(AssertionError, match=r"device: 'cuda:[01]' cannot be used here"):
        launch(*command, "--device", "cuda", processes=2)


def test_processes_that_read_different_checkpoints_are_refused(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_is_further(extremes: torch.Tensor, _: object) -> None:
        extremes += torch.tensor([1, 0])  # as if the other process had read one token more

    given = {"epochs": 1, "config": toy.config, "checkpoint": tmp_path / "c"}
    monkeypatch.setattr("frostline.tagger.training.data_parallel.dist.all_reduce", other_is_further)
    monkeypatch.setattr("frostline.tagger.training.data_parallel.dist.get_world_size", lambda: 2)
    monkeypatch.setattr("frostline.tagger.training.data_parallel.dist.get_rank", lambda: 0)
    monkeypatch.setattr("frostline.tagger.training.checkpoint.Checkpoint.read", lambda self, loop, path: None)
    with pytest.raises(fl.RunFolderError, match=f"{tmp_path / 'c'}: another training run writes to it. Stop that run"):
        tagger.train(toy.train, toy.dev, toy.vectors, distributed=True, resume=True, **given)
