"""Trains a tagger in each of torchrun's processes: `train_distributed.py OUT DROPOUT [CHECKPOINT STEPS]`.

With a checkpoint it goes on from there, if it exists, and all processes end without a word after so many steps.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from frostline import tagger
from frostline.vectors import Vectors


class Death(tagger.Callback):
    """Ends the process after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def batch(self, tokens: int) -> None:
        self.steps -= 1
        if self.steps == 0:
            os._exit(0)


def train(dropout: float, distributed: bool, **given: Any) -> tagger.TrainingRun:
    """37 sentences in batches of 4, so that one has a single sentence, and as many with a second tag set."""
    words = [f"w{i}" for i in range(40)]
    vectors = Vectors(words, np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    tokens = [[f"w{(7 * i + j * j) % 50}" for j in range(1 + i % 6)] for i in range(37)]
    first, second = (
        [(line, [tag if word < "w3" else "O" for word in line]) for line in tokens] for tag in ("B-x", "B-y")
    )
    config = tagger.TaggerConfig(hidden=8, shape_width=2, char_filters=3, batch_size=4, dropout=dropout, ema_decay=0.0)
    return tagger.train(
        first, first, vectors, auxiliary=[second], epochs=4, config=config, distributed=distributed, **given
    )


if __name__ == "__main__":
    dist.init_process_group("gloo")
    given: dict[str, Any] = {}
    if len(sys.argv) > 3:
        given = {"checkpoint": sys.argv[3], "resume": Path(sys.argv[3]).exists(), "checkpoint_every": 0}
        given["callback"] = Death(int(sys.argv[4]))
    run = train(float(sys.argv[2]), distributed=True, **given)
    found = {"state": run.tagger.model.state_dict(), "losses": torch.tensor([epoch.loss for epoch in run.history])}
    found["moved"] = torch.tensor([run.audit.frozen_moved, run.audit.learned_rows_moved])
    torch.save(found, Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
