"""Proof after training: every entry that was to stay is compared, bit by bit, with what it was.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 10_000  # rows compared at a time: what a comparison holds besides the tables stays small


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


def compare(start: Tensor, end: Tensor, learns: Tensor) -> Audit:
    """Count what differs between two tables.

    Args:
        start: The table before, float32, shape (V, D).
        end: The table after, float32, shape (V, D).
        learns: True for the rows that were to learn, bool, shape (V,).

    Returns:
        An `Audit`. Bits are compared, so 0.0 and -0.0 differ, and NaN equals itself.

    Example:
        >>> before, after = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.0, -0.0], [1.0, 0.0]])
        >>> print(compare(before, after, torch.tensor([False, False, True])))
        1 of 4 frozen entries moved, compared bit by bit; 1 of 1 rows that learn moved
    """
    frozen_moved = learned_rows_moved = 0
    for before, after, learn in zip(start.split(_BLOCK), end.split(_BLOCK), learns.split(_BLOCK), strict=True):
        moved = before.contiguous().view(torch.int32) != after.contiguous().view(torch.int32)  # (block, D)
        frozen_moved += int(moved[~learn].sum())
        learned_rows_moved += int(moved[learn].any(dim=1).sum())
    return Audit(
        frozen_compared=int((~learns).sum()) * start.shape[1],
        frozen_moved=frozen_moved,
        learned_rows=int(learns.sum()),
        learned_rows_moved=learned_rows_moved,
    )
