"""Trains a tagger on the CPU and on the device of elsewhere.cpp: `train_elsewhere.py LIBRARY OUT`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.backend_registration import rename_privateuse1_backend

from frostline import tagger
from frostline.vectors import Vectors

TOKENS = [[f"w{(7 * i + j * j) % 50}" for j in range(1 + i % 6)] for i in range(37)]


class _Elsewhere:
    """What torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


class _Stop(tagger.Callback):
    def __init__(self) -> None:
        self.steps = 0

    def batch(self, tokens: int) -> None:
        self.steps += 1
        if self.steps == 27:
            raise KeyboardInterrupt


def train(**given: Any) -> tagger.TrainingRun:
    """Train with every kind of random draw: dropout, recurrent dropout, hidden words, a second corpus, characters."""
    words = [f"w{i}" for i in range(40)]
    vectors = Vectors(words, np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    first, second = (
        [(line, [tag if word < "w3" else "O" for word in line]) for line in TOKENS] for tag in ("B-x", "B-y")
    )
    config = tagger.TaggerConfig(
        hidden=8, batch_size=4, dropout=0.3, dropout_state=0.2, char_filters=3, learning_rate=0.03, o_bias=0.0
    )
    return tagger.train(first, first, vectors, auxiliary=[second], epochs=3, config=config, **given)


def refused(use: Callable[[], object]) -> bool:
    """Whether the device refuses it."""
    try:
        use()
    except RuntimeError:
        return True
    return False


def use_library(path: str) -> None:
    """Let torch know the device."""
    torch.ops.load_library(path)
    rename_privateuse1_backend("elsewhere")
    torch._register_device_module("elsewhere", _Elsewhere())


if __name__ == "__main__":
    use_library(sys.argv[1])
    out = Path(sys.argv[2])
    ones = torch.ones(3, device="elsewhere")
    found: dict[str, Any] = {
        "mixes": not refused(lambda: ones + torch.ones(3)),
        "draws": not refused(lambda: torch.nn.functional.dropout(ones)),
        "adds": (ones + ones).tolist(),
    }
    runs = {device: train(device=device) for device in ("cpu", "elsewhere")}
    try:
        train(device="elsewhere", checkpoint=out / "c", checkpoint_every=0, callback=_Stop())
    except KeyboardInterrupt:
        runs["resumed"] = train(device="elsewhere", checkpoint=out / "c", resume=True)
    for name, run in runs.items():
        run.tagger.save(out / name)
        moved = [run.audit.frozen_moved, run.audit.learned_rows_moved]
        found[name] = {"losses": [epoch.loss for epoch in run.history], "moved": moved}
    loaded = tagger.Tagger.load(out / "cpu")
    found["predicted"] = loaded.predict(TOKENS)
    loaded.model.to("elsewhere")
    found["device"], found["predicted elsewhere"] = str(loaded.device), loaded.predict(TOKENS)
    (out / "found.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # torch ends the threads of such a device badly
