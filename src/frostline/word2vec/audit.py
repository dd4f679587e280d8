"""What has moved: every value of both tables, compared bit by bit with what it was at the start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from frostline.word2vec.problem import Table
from frostline.word2vec.sampling import Ints
from frostline.word2vec.training import Training

_BLOCK = 16_384  # rows compared at a time


@dataclass(frozen=True)
class Audit:
    """Counts over both tables.

    Attributes:
        frozen_compared: Values of rows that do not learn, of tables that were given.
        frozen_moved: Those of them that are not what they were.
        learned_rows: Rows that learn.
        learned_rows_moved: Those of them that have a value that is not what it was.
    """

    frozen_compared: int
    frozen_moved: int
    learned_rows: int
    learned_rows_moved: int

    def __str__(self) -> str:
        frozen = f"{self.frozen_moved:,} of {self.frozen_compared:,} frozen values moved"
        return f"{frozen}; {self.learned_rows_moved:,} of {self.learned_rows:,} rows that learn moved"


def audit(training: Training) -> Audit:
    """Compare the tables of a run with what they were at the start.

    Cost: one pass over both tables; rows that were drawn are drawn again.
    """
    counts = np.zeros(4, dtype=np.int64)
    for name in ("input", "output"):
        learns = getattr(training.problem, f"{name}_learns") != 0
        for index, before, after in blocks(training, name, np.arange(len(learns))):
            moved = before.view(f"u{before.itemsize}") != after.view(f"u{after.itemsize}")
            frozen = ~learns[index]
            counts += (
                int(frozen.sum()) * training.problem.settings.dim,
                int(moved[frozen].sum()),
                int((~frozen).sum()),
                int(moved[~frozen].any(axis=1).sum()),
            )
    return Audit(*counts.tolist())


def blocks(training: Training, name: Literal["input", "output"], index: Ints) -> Iterator[tuple[Ints, Table, Table]]:
    """Yield rows of a table in blocks: their indices, their values at the start and now, shape (n, 16 S)."""
    table = getattr(training.problem, name)
    for first in range(0, len(index), _BLOCK):
        some = index[first : first + _BLOCK]
        yield some, training.tables.initial(name, some), table[some]
