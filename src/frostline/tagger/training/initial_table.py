"""The table as it is before training, kept as what it is made of.

Letters used for shapes in this file:
    M  rows that are drawn: padding, <unk>, missing words          V  words of the vectors
    D  width of a row                                              N  rows asked for

The idea: all rows but a few are the vectors, which stand in a mapped file or in the caller's memory already. So the
start costs the memory of M rows, and what it is compared with after training are the vectors themselves.

Proof after training: every entry that was to stay is compared, bit by bit, with what it was.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row          N  rows asked for
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.tagger.data.vocabulary import FIRST, PADDING
from frostline.vectors.table import give_back

_BLOCK = 2_000  # rows in memory at a time
_COLUMNS = 8  # of which mean and spread are taken at a time


@dataclass(frozen=True, eq=False)
class Start:
    """The rows of the table: those that are `drawn`, float32, shape (M, D), then `vectors`, float32, shape (V, D).

    The vectors are kept, not copied, and never written to.
    """

    drawn: Tensor
    vectors: npt.NDArray[np.float32]

    @classmethod
    def draw(cls, vectors: npt.NDArray[np.float32], missing: int, generator: np.random.Generator) -> Start:
        """Return a start: padding of zeros, then rows as widely spread as the vectors.

        Args:
            vectors: Matrix of the pretrained words, float32, shape (V, D).
            missing: How many missing words there are.
            generator: Draws <unk> and the missing words from a normal distribution with the vectors' mean and spread.

        Cost: one pass over the vectors, with a copy of some columns at a time.
        """
        columns = np.array_split(vectors, max(1, vectors.shape[1] // _COLUMNS), axis=1)
        mean = np.concatenate([some.mean(axis=0) for some in columns])
        spread = np.concatenate([some.std(axis=0) for some in columns])
        give_back(vectors)
        drawn = generator.normal(mean, spread, size=(FIRST + missing, vectors.shape[1])).astype(np.float32)
        drawn[PADDING] = 0
        return cls(torch.from_numpy(drawn), vectors)

    def __len__(self) -> int:
        return len(self.drawn) + len(self.vectors)

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids`, int64, shape (N,): a copy, float32, shape (N, D)."""
        known = ids >= len(self.drawn)
        found = self.drawn.new_empty(len(ids), self.drawn.shape[1])
        found[~known] = self.drawn[ids[~known]]
        found[known] = torch.from_numpy(self.vectors[(ids[known] - len(self.drawn)).numpy()])
        give_back(self.vectors)
        return found

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows in order, some at a time: copies, which together have the shape (M + V, D)."""
        for ids in torch.arange(len(self)).split(_BLOCK):
            yield self.rows(ids)

    def table(self) -> Tensor:
        """Return all rows: a copy, float32, shape (M + V, D)."""
        table = self.drawn.new_empty(len(self), self.drawn.shape[1])
        for place, block in zip(table.split(_BLOCK), self.blocks(), strict=True):
            place.copy_(block)
        return table


Rows = Callable[[Tensor], Tensor]


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
