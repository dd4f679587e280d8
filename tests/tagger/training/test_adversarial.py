"""Training against moved vectors: it changes the training, keeps what is frozen, and resumes to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from frostline import tagger
from frostline.cli import main
from frostline.vectors import Vectors

WORDS = ["Ada", "Rome", "sees", "loves", "Oslo", "Eve"]
TRAIN = [(("Ada", "sees", "Rome", "zork"), ("B-person", "O", "B-place", "O"))] * 6
CONFIG: dict[str, Any] = {"hidden": 4, "shape_width": 2, "batch_size": 2, "learning_rate": 0.05}


def _vectors() -> Vectors:
    return Vectors(WORDS, np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))


def _train(adversarial: float, **options: Any) -> tagger.TrainingRun:
    config = tagger.TaggerConfig(adversarial=adversarial, **CONFIG)
    return tagger.train(TRAIN, TRAIN, _vectors(), epochs=3, config=config, **options)


def _state(run: tagger.TrainingRun) -> list[torch.Tensor]:
    return list(run.tagger.model.state_dict().values())


def test_it_changes_what_is_learned_and_no_frozen_row() -> None:
    plain, adversarial = _train(0.0), _train(0.5)
    assert adversarial.audit.frozen_moved == 0
    assert not all(map(torch.equal, _state(plain), _state(adversarial)))
    assert all(epoch.loss > other.loss for epoch, other in zip(adversarial.history, plain.history, strict=True))
    assert all(map(torch.equal, _state(adversarial), _state(_train(0.5))))


class _Killed(tagger.Callback):
    def __init__(self) -> None:
        self.steps = 0

    def batch(self, tokens: int) -> None:
        self.steps += 1
        if self.steps == 5:
            raise KeyboardInterrupt


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": tmp_path / "state", "checkpoint_every": 0.0}
    with pytest.raises(KeyboardInterrupt):
        _train(0.5, callback=_Killed(), **options)
    assert all(map(torch.equal, _state(_train(0.5, resume=True, **options)), _state(_train(0.5))))


def test_the_command_line_takes_fgm_and_its_epsilon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{token} {tag}" for tokens, tags in TRAIN for token, tag in zip((*tokens, ""), (*tags, ""), strict=True)]
    (tmp_path / "train.conll").write_text("\n".join(line.strip() for line in lines))
    rows = [" ".join(map(str, row)) for row in _vectors().matrix.tolist()]
    (tmp_path / "v.txt").write_text("".join(f"{word} {row}\n" for word, row in zip(WORDS, rows, strict=True)))
    files = [f"--{name}={tmp_path / 'train.conll'}" for name in ("train", "dev")]
    arguments = ["tagger", "train", *files, f"--vectors={tmp_path / 'v.txt'}", "--epochs=1"]
    assert main([*arguments, f"--out={tmp_path / 'model'}", "--adversarial", "fgm:0.5"]) == 0
    capsys.readouterr()
    for wrong in ("pgd:0.5", "fgm", "fgm:0", "fgm:nan", "0.5"):
        assert main([*arguments, f"--out={tmp_path / 'other'}", "--adversarial", wrong]) == 2
        assert f"{wrong!r}: expected fgm: and a number above 0, such as fgm:0.5" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
