"""Proof after training: every entry that was to stay is compared, bit by bit, with what it was.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row          N  rows asked for
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = Callable[[Tensor], Tensor]

_BLOCK = 2_000  # rows compared at a time: what a comparison holds besides the tables stays small


@dataclass(frozen=True)
class Audit:
    """What moved: numbers (entries) of the rows that were frozen, and rows among those that were to learn."""

    frozen_compared: int
    frozen_moved: int
    learned_rows: int
    learned_rows_moved: int

    def __str__(self) -> str:
        return (
            f"{self.frozen_moved:,} of {self.frozen_compared:,} frozen entries moved, compared bit by bit; "
            f"{self.learned_rows_moved:,} of {self.learned_rows:,} rows that learn moved"
        )


@torch.no_grad()
def compare(before: Rows, after: Rows, learns: Tensor) -> Audit:
    """Count what differs between two tables.

    Args:
        before: Gives rows of the table before by their ids: int64, shape (N,) -> float32, shape (N, D).
        after: Gives those of the table after.
        learns: True for the rows that were to learn, bool, shape (V,).

    Returns:
        An `Audit`. Bits are compared, so 0.0 and -0.0 differ, and NaN equals itself.

    Cost: one pass over both tables, some rows at a time.

    Example:
        >>> was, became = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.0, -0.0], [1.0, 0.0]])
        >>> print(compare(was.__getitem__, became.__getitem__, torch.tensor([False, False, True])))
        1 of 4 frozen entries moved, compared bit by bit; 1 of 1 rows that learn moved
    """
    frozen = frozen_moved = learned = learned_moved = 0
    for ids in torch.arange(len(learns)).split(_BLOCK):
        moved = before(ids).view(torch.int32) != after(ids).view(torch.int32)  # (N, D)
        still, free = moved[~learns[ids]], moved[learns[ids]]
        frozen, frozen_moved = frozen + still.numel(), frozen_moved + int(still.sum())
        learned, learned_moved = learned + len(free), learned_moved + int(free.any(dim=1).sum())
    return Audit(frozen, frozen_moved, learned, learned_moved)
