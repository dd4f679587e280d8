"""What a run leaves for `frostline report`: its facts, plan, audit and loss, and the words that moved furthest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from frostline.files import remove_unfinished
from frostline.record import RowChanges, describe_run
from frostline.record.run_folder import CURVES, ROW_CHANGES
from frostline.record.valid import HOLDS
from frostline.word2vec.audit import audit, blocks
from frostline.word2vec.training import Training

_LEARNED, _FROZEN = 1000, 300  # words of which the rows are written


def write_run_folder(folder: Path, training: Training, text: str) -> None:
    """Write the files of a run folder (see `frostline.record.run_folder`), next to what is already there.

    Args:
        folder: Where to write.
        training: A run.
        text: The name of the text.

    Raises:
        RunFolderError: The folder cannot be written to.

    Cost: two passes over the tables; unless everything learns, a copy of them for the plan.
    """
    remove_unfinished(folder, {CURVES, ROW_CHANGES, *HOLDS})
    settings, corpus = training.problem.settings, training.problem.corpus
    kind = "skip-gram" if settings.skip_gram else "CBOW"
    facts = {
        "text": f"{corpus.size:,} words, {len(corpus.words):,} different ones, in {text}",
        "vectors": f"{len(training.words):,} words, dimension {settings.dim}",
        "settings": ", ".join(f"{name} {value}" for name, value in settings.to_dict().items() if value is not None),
    }
    describe_run(
        folder,
        title=f"Word vectors by {kind}, trained on {Path(text).name}",
        facts=facts,
        plan=None if training.tables.learns is None else training.plan,
        audit=asdict(audit(training)),
        curves=[{"epoch": epoch.number, "loss": epoch.loss} for epoch in training.history if epoch.loss == epoch.loss],
        row_changes=_row_changes(training),
    )


def _row_changes(training: Training) -> RowChanges | None:
    problem, dim = training.problem, training.problem.settings.dim
    learns = problem.input_learns[: len(problem.corpus.words)] != 0
    learned, frozen = np.flatnonzero(learns), np.flatnonzero(~learns)[:_FROZEN]
    if not len(learned):
        return None
    parts = [
        np.linalg.norm((after - before).astype(np.float64), axis=1).astype(np.float32)
        for _, before, after in blocks(training, "input", learned)
    ]
    distances = np.concatenate(parts)
    rows = np.concatenate([learned[np.argsort(-distances, kind="stable")[:_LEARNED]], frozen])
    (_, before, after), *_ = blocks(training, "input", rows)
    return RowChanges(
        [training.words[row] for row in rows.tolist()],
        torch.from_numpy(learns[rows]),
        torch.from_numpy(np.ascontiguousarray(before[:, :dim])),
        torch.from_numpy(np.ascontiguousarray(after[:, :dim])),
        torch.from_numpy(distances),
    )
