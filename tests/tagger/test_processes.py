"""Several processes train the tagger that one would have trained."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline import tagger

SCRIPT = Path(__file__).with_name("train_together.py")


def _torchrun(processes: int, *arguments: object) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _one(dropout: float) -> tagger.TrainingRun:
    spec = importlib.util.spec_from_file_location("train_together", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run: tagger.TrainingRun = module.train(dropout, together=False)
    return run


def _found(folder: Path, processes: int, dropout: float) -> list[dict[str, Any]]:
    _torchrun(processes, SCRIPT, folder, dropout)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize("processes", [2, 3])
def test_without_dropout_a_team_takes_the_steps_of_one_process_but_for_rounding(tmp_path: Path, processes: int) -> None:
    alone = _one(dropout=0.0)
    for found in _found(tmp_path, processes, dropout=0.0):
        losses = torch.tensor([epoch.loss for epoch in alone.history])
        torch.testing.assert_close(found["losses"], losses, rtol=1e-4, atol=1e-6)
        for name, value in alone.tagger.model.state_dict().items():
            torch.testing.assert_close(found["state"][name], value, rtol=5e-3, atol=5e-4)
        assert found["moved"].tolist() == [0, alone.audit.learned_rows_moved]
        assert found["losses"][-1] < 0.95 * found["losses"][0]


def test_every_process_ends_with_the_same_bits_and_dropout_draws_differ(tmp_path: Path) -> None:
    one, other = _found(tmp_path, 2, dropout=0.3)
    assert all(torch.equal(one["state"][name], other["state"][name]) for name in one["state"])
    assert one["losses"].tolist() == other["losses"].tolist()
    assert one["losses"][-1] < one["losses"][0]
    assert one["losses"].tolist() != [epoch.loss for epoch in _one(dropout=0.3).history]


def test_a_checkpoint_is_refused_by_a_team(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint: kept by a training of one process only"):
        tagger.train(toy.train, toy.dev, toy.vectors, checkpoint=tmp_path / "c", together=True)
