"""Rows of a table before and after training: few enough to keep, with their words.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    N  rows that are kept         R  rows that learned
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from frostline.errors import RunFolderError

_FORMAT = "frostline-movement-1"
_TENSORS = ("learns", "before", "after", "distances")
_FURTHEST, _STANDING = 1000, 300  # rows that are kept


@dataclass(frozen=True)
class Movement:
    """Rows of a table before and after: those that moved furthest, and some that stood still, to compare with.

    Attributes:
        words: A word for each kept row, shape (N,).
        learns: Whether the row learned, bool, shape (N,); the ones that learned come first, the furthest first.
        before: The kept rows before training, shape (N, D).
        after: The kept rows after training, shape (N, D).
        distances: How far each of the R rows that learned moved (Euclidean), float32, shape (R,).
    """

    words: list[str]
    learns: Tensor
    before: Tensor
    after: Tensor
    distances: Tensor

    @classmethod
    def of(
        cls, words: Sequence[str], before: Tensor, after: Tensor, learned: Tensor, standing: Iterable[int] = ()
    ) -> Movement:
        """Choose what to keep of a table.

        Args:
            words: The word of each row, shape (V,).
            before: The table before training, shape (V, D).
            after: The table after training, shape (V, D).
            learned: Ids of the rows that learned, int64, shape (R,).
            standing: Ids of rows that did not, the most telling first.

        Returns:
            At most 1,000 rows that learned and 300 that did not.

        Example:
            >>> before, after = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
            >>> moved = Movement.of(["a", "b", "c"], before, after, torch.tensor([1, 2]), standing=[0])
            >>> moved.words, moved.distances.tolist()
            (['c', 'b', 'a'], [1.0, 5.0])
        """
        distances = (after[learned].float() - before[learned].float()).norm(dim=1)
        furthest = learned[distances.argsort(descending=True, stable=True)[:_FURTHEST]]
        rows = torch.cat([furthest, torch.tensor(list(standing)[:_STANDING], dtype=torch.int64)])
        learns = torch.arange(len(rows)) < len(furthest)
        return cls([words[row] for row in rows.tolist()], learns, before[rows], after[rows], distances)

    def to_bytes(self) -> bytes:
        """The movement as a safetensors file."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        return save(tensors, {"format": _FORMAT, "words": json.dumps(self.words)})


def read_movement(path: Path) -> Movement | None:
    """The movement in a file; None where there is no such file; RunFolderError where it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
            words: Any = json.loads(metadata["words"])
            learns, before, after, distances = (file.get_tensor(name) for name in _TENSORS)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("its words are no list of strings")
        if before.ndim != 2 or before.shape != after.shape or len(before) != len(words) or distances.ndim != 1:
            raise ValueError(f"{len(words)} words for rows of shape {tuple(before.shape)} and {tuple(after.shape)}")
        if learns.dtype != torch.bool or learns.shape != (len(words),):
            raise ValueError("it does not say which rows learned")
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise RunFolderError(
            f"{path}: damaged: {' '.join(str(error).split())}. Delete it, or write it again."
        ) from None
    return Movement(words, learns, before, after, distances)
