"""The embedding table before training, and the audit that compares it, bit by bit, with the table after.

Letters used for shapes in this file:
    M  random rows: padding, <unk>, missing words          V  words of the vectors
    D  width of a row                                      N  rows asked for

The idea: all rows but a few are the pretrained vectors, which stay in a mapped file or in the caller's memory. So the
initial table is stored as (random rows, pretrained matrix) instead of a copy, at the cost of M rows, and what is
compared after training are the vectors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.tagger.data.vocabulary import FIRST_WORD, PADDING
from frostline.vectors.table import release_pages

_BLOCK = 2_000  # rows in memory at a time
_COLUMNS = 8  # whose mean and standard deviation are taken at a time

Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class InitialTable:
    """The rows of the table: `random`, float32, shape (M, D), then `pretrained`, float32, shape (V, D).

    The pretrained matrix is referred to, not copied, and never written to.
    """

    random: Tensor
    pretrained: npt.NDArray[np.float32]

    @classmethod
    def draw(cls, pretrained: npt.NDArray[np.float32], missing: int, generator: np.random.Generator) -> InitialTable:
        """Return a table: padding of zeros, random rows with the spread of the pretrained rows, then these rows.

        Args:
            pretrained: Matrix of the pretrained words, float32, shape (V, D).
            missing: How many missing words there are.
            generator: Draws <unk> and the missing words from a normal distribution, with the mean and the standard
                deviation of each pretrained column; without pretrained words, mean 0 and deviation D ** -0.5.

        Cost: one pass over the pretrained matrix, with a copy of some columns at a time.
        """
        if not len(pretrained):
            return cls._from_normal(0.0, pretrained.shape[1] ** -0.5, pretrained, missing, generator)
        columns = np.array_split(pretrained, max(1, pretrained.shape[1] // _COLUMNS), axis=1)
        mean = np.concatenate([some.mean(axis=0) for some in columns])
        deviation = np.concatenate([some.std(axis=0) for some in columns])
        release_pages(pretrained)
        return cls._from_normal(mean, deviation, pretrained, missing, generator)

    @classmethod
    def _from_normal(
        cls,
        mean: float | npt.NDArray[np.float32],
        deviation: float | npt.NDArray[np.float32],
        pretrained: npt.NDArray[np.float32],
        missing: int,
        generator: np.random.Generator,
    ) -> InitialTable:
        random = generator.normal(mean, deviation, size=(FIRST_WORD + missing, pretrained.shape[1])).astype(np.float32)
        random[PADDING] = 0
        return cls(torch.from_numpy(random), pretrained)

    def __len__(self) -> int:
        return len(self.random) + len(self.pretrained)

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids`, int64, shape (N,): a copy, float32, shape (N, D)."""
        known = ids >= len(self.random)
        found = self.random.new_empty(len(ids), self.random.shape[1])
        found[~known] = self.random[ids[~known]]
        found[known] = torch.from_numpy(self.pretrained[(ids[known] - len(self.random)).numpy()])
        release_pages(self.pretrained)
        return found

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows in order, some at a time: copies, which together have the shape (M + V, D)."""
        for ids in torch.arange(len(self)).split(_BLOCK):
            yield self.rows(ids)

    def to_tensor(self) -> Tensor:
        """Return all rows: a copy, float32, shape (M + V, D)."""
        table = self.random.new_empty(len(self), self.random.shape[1])
        for target, block in zip(table.split(_BLOCK), self.blocks(), strict=True):
            target.copy_(block)
        return table


@dataclass(frozen=True)
class Audit:
    """What moved: entries of the frozen rows, and how many of the rows that learn."""

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
    """Count what differs between two tables of T rows.

    Args:
        before: Returns rows of the table before by their ids: int64, shape (N,) -> float32, shape (N, D).
        after: Returns those of the table after.
        learns: True for the rows that learn, bool, shape (T,).

    Returns:
        An `Audit`. Bits are compared, so 0.0 and -0.0 differ, and NaN equals itself.

    Cost: one pass over both tables, some rows at a time.

    Example:
        >>> before, after = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.0, -0.0], [1.0, 0.0]])
        >>> print(compare(before.__getitem__, after.__getitem__, torch.tensor([False, False, True])))
        1 of 4 frozen entries moved, compared bit by bit; 1 of 1 rows that learn moved
    """
    frozen = frozen_moved = learned = learned_moved = 0
    for ids in torch.arange(len(learns)).split(_BLOCK):
        moved = before(ids).view(torch.int32) != after(ids).view(torch.int32)  # (N, D)
        of_frozen, of_learned = moved[~learns[ids]], moved[learns[ids]]
        frozen, frozen_moved = frozen + of_frozen.numel(), frozen_moved + int(of_frozen.sum())
        learned, learned_moved = learned + len(of_learned), learned_moved + int(of_learned.any(dim=1).sum())
    return Audit(frozen, frozen_moved, learned, learned_moved)
