"""The table as it is before training, kept as what it is made of.

Letters used for shapes in this file:
    M  rows that are drawn: padding, <unk>, missing words          V  words of the vectors
    D  width of a row                                              N  rows asked for

The idea: all rows but a few are the vectors, which stand in a mapped file or in the caller's memory already. So the
start costs the memory of M rows, and what it is compared with after training are the vectors themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.tagger.vocabulary import FIRST, PADDING
from frostline.vectors.pages import give_back

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
