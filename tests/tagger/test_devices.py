"""The device and the precision to compute in can be chosen; what learns, and what comes out, stays what it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from frostline import tagger
from frostline.tagger.devices import precision, usable


@pytest.fixture(scope="module")
def coarse(toy: Any) -> tagger.TrainingRun:
    return tagger.train(toy.train, toy.dev, toy.vectors, epochs=4, options=toy.options, bf16=True)


def test_in_bfloat16_the_loss_falls_as_in_float32_and_what_is_kept_is_float32(
    toy: Any, coarse: tagger.TrainingRun
) -> None:
    fine = tagger.train(toy.train, toy.dev, toy.vectors, epochs=4, options=toy.options)
    assert coarse.history[-1].loss < 0.5 * coarse.history[0].loss
    for one, other in zip(coarse.history, fine.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.1)
        assert one.loss != other.loss  # it did compute otherwise
    assert {value.dtype for value in coarse.tagger.model.state_dict().values()} == {torch.float32}


def test_in_bfloat16_frozen_rows_keep_every_bit(coarse: tagger.TrainingRun) -> None:
    assert coarse.audit.frozen_compared > 0
    assert coarse.audit.frozen_moved == 0
    assert coarse.audit.learned_rows_moved == coarse.audit.learned_rows > 1


class _Stop(tagger.Watcher):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def batch(self, tokens: int) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


def test_in_bfloat16_interrupted_and_resumed_equals_uninterrupted(
    toy: Any, tmp_path: Path, coarse: tagger.TrainingRun
) -> None:
    given = {"epochs": 4, "options": toy.options, "bf16": True, "checkpoint": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        tagger.train(toy.train, toy.dev, toy.vectors, every=0, watch=_Stop(33), **given)
    resumed = tagger.train(toy.train, toy.dev, toy.vectors, resume=True, **given)
    weights = coarse.tagger.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in resumed.tagger.model.state_dict().items())
    with pytest.raises(fl.RunFolderError, match="written by a training with bf16 True, and here it is False"):
        tagger.train(toy.train, toy.dev, toy.vectors, resume=True, **given | {"bf16": False})


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_here_is_refused_in_one_line(toy: Any, name: str) -> None:
    with pytest.raises(
        fl.FrostlineError, match=f"device: '{name}' cannot be used here .*Pass one that can: cpu"
    ) as why:
        tagger.train(toy.train, toy.dev, toy.vectors, device=name)
    assert "\n" not in str(why.value)


def test_a_device_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(fl.FrostlineError, match=re.escape("bf16: cuda:0 has no bfloat16. Leave it out.")):
        precision(torch.device("cuda:0"), bf16=True)
    precision(torch.device("cuda:0"), bf16=False)


def test_a_usable_device_is_given_back_as_it_was_named() -> None:
    assert usable("cpu") == usable(torch.device("cpu")) == torch.device("cpu")
