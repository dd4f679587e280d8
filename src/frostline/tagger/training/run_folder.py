"""What a training run leaves for `frostline report`: its plan, curves and audit, and the rows that learned.

Of the table only the rows that moved furthest are written, and some of the commonest known words to compare with, so
that the files stay small whatever the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from frostline.record import Movement, describe_run
from frostline.tagger.data.vocabulary import FIRST, UNKNOWN
from frostline.tagger.training.train import TrainingRun

_STANDING = 300  # known words that are written


def leave(
    folder: str | os.PathLike[str],
    run: TrainingRun,
    *,
    title: str,
    facts: Mapping[str, str],
    curves: Iterable[Mapping[str, Any]] | None = None,
) -> None:
    """Write the files of a run folder (see `frostline.record.run_folder`) beside what is there.

    Args:
        folder: The run folder, such as the one the tagger is saved in.
        run: What `train` returned.
        title: What the run was, in a few words.
        facts: What else to say of it: name -> text.
        curves: Points to draw; by default loss and F1 on dev of this run.

    Raises:
        RunFolderError: The folder cannot be written to.

    Cost: one pass over the rows that learned.
    """
    points = ({"epoch": epoch.number, "loss": epoch.loss, "F1 on dev": epoch.dev_f1} for epoch in run.history)
    describe_run(
        folder,
        title=title,
        facts=facts,
        plan=run.plan,
        audit=asdict(run.audit),
        curves=points if curves is None else curves,
        movement=_movement(run),
    )


def _movement(run: TrainingRun) -> Movement | None:
    vocabulary = run.tagger.vocabulary
    learns = next(line.learns for line in run.plan.lines if line.name == "embed.weight")
    if learns == "nothing":
        return None
    known = range(FIRST + vocabulary.missing, len(vocabulary))[:_STANDING]
    learned, standing = (vocabulary.learned, known) if learns == "rows" else (range(UNKNOWN, len(vocabulary)), range(0))
    rows = [*learned, *standing]
    words = ["<unk>" if row == UNKNOWN else vocabulary.words[row - FIRST] for row in rows]
    with torch.no_grad():
        after = run.tagger.model.embed(torch.tensor(rows))
    before = run.before.rows(torch.tensor(rows))
    return Movement.of(words, before, after, torch.arange(len(learned)), range(len(learned), len(rows)))
