"""Trains a tagger in each of torchrun's processes: `train_together.py OUT DROPOUT`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from frostline import tagger
from frostline.vectors import Vectors


def train(dropout: float, together: bool) -> tagger.TrainingRun:
    """37 sentences in batches of 4, so that one has a single sentence, and as many of another tag set."""
    words = [f"w{number}" for number in range(40)]
    vectors = Vectors(words, np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    tokens = [[f"w{(7 * i + j * j) % 50}" for j in range(1 + i % 6)] for i in range(37)]
    first, second = (
        [(line, [tag if word < "w3" else "O" for word in line]) for line in tokens] for tag in ("B-x", "B-y")
    )
    options = tagger.Options(hidden=8, shape_width=2, characters=3, batch=4, dropout=dropout, average=0.0)
    return tagger.train(first, first, vectors, also=[second], epochs=4, options=options, together=together)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    run = train(float(sys.argv[2]), together=True)
    found = {"state": run.tagger.model.state_dict(), "losses": torch.tensor([epoch.loss for epoch in run.history])}
    found["moved"] = torch.tensor([run.audit.frozen_moved, run.audit.learned_rows_moved])
    torch.save(found, Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
