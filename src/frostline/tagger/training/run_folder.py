"""Write what a training run leaves for `frostline report`: its plan, curves and audit, and the rows that learned.

Of the table only the rows that moved furthest are written, and some of the most frequent frozen ones to compare with,
so the files stay small whatever the size of the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from frostline.record import RowChanges, describe_run
from frostline.tagger.data.vocabulary import FIRST_WORD, UNKNOWN
from frostline.tagger.scoring.score_table import scored
from frostline.tagger.tagger import Labelled
from frostline.tagger.training.train import TrainingRun

_FROZEN = 300  # frozen rows that are written, those of the first words of the vectors


def write_run_folder(
    path: str | os.PathLike[str],
    run: TrainingRun,
    *,
    title: str,
    facts: Mapping[str, str],
    curves: Iterable[Mapping[str, Any]] | None = None,
    dev: Sequence[Labelled] | None = None,
) -> None:
    """Write the files of a run folder (see `frostline.record.run_folder`), next to what is already there.

    Args:
        path: The folder, such as the one that the tagger is saved in.
        run: What `train` returned.
        title: What the run was, in a few words.
        facts: What else to say of it: name -> text.
        curves: Points to draw; by default loss and F1 on dev of this run.
        dev: Sentences of which to say what is found by type and what goes wrong; named dev.

    Raises:
        RunFolderError: The folder cannot be written to.

    Cost: one pass over the rows that learned, and one prediction of `dev`.
    """
    points = ({"epoch": epoch.number, "loss": epoch.loss, "F1 on dev": epoch.dev_f1} for epoch in run.history)
    describe_run(
        path,
        title=title,
        facts=facts,
        plan=run.plan,
        audit=asdict(run.audit),
        curves=points if curves is None else curves,
        row_changes=_row_changes(run),
        **({} if dev is None else scored("dev", dev, run.tagger.predict([tokens for tokens, _ in dev]))),
    )


def _row_changes(run: TrainingRun) -> RowChanges | None:
    vocabulary = run.tagger.vocabulary
    learns = next(line.learns for line in run.plan.lines if line.name == "embed.weight")
    if learns == "nothing":
        return None
    pretrained = range(FIRST_WORD + vocabulary.missing, len(vocabulary))
    learned, frozen = (
        (vocabulary.learned, pretrained[:_FROZEN]) if learns == "rows" else (range(UNKNOWN, len(vocabulary)), range(0))
    )
    rows = [*learned, *frozen]
    words = ["<unk>" if row == UNKNOWN else vocabulary.words[row - FIRST_WORD] for row in rows]
    with torch.no_grad():
        after = run.tagger.model.embed(torch.tensor(rows))
    before = run.initial_table.rows(torch.tensor(rows))
    return RowChanges.from_tables(words, before, after, torch.arange(len(learned)), range(len(learned), len(rows)))
