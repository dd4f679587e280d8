"""Which words may stand for which: candidates, nearest in the vectors, of the same group, and never certain ones.

Letters used for shapes in this file:
    V  rows of the table       D  width of a vector
    C  candidates              P  words to be replaced       n  nearest candidates of each
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

_ELEMENTS = 1 << 23  # of a matrix of words x candidates in memory at a time


class Allowed:
    """The words that `fl.adversarial.swap` may put in the place of others.

    Args:
        ids: The candidates, whole numbers, shape (C,), in any order. None: every row of the table.
        nearest: A word is replaced only by one of the candidates nearest to it by cosine in the module's vectors; how
            many, 1 or more. None: by any.
        groups: A number for each row of the table, shape (V,), such as a word's shape or part of speech: a word is
            replaced only by one of the same number. None: by any.
        stop: Ids that are neither replaced nor chosen, such as function words and the unknown word.

    Raises:
        TypeError: Something is not made of whole numbers.
        ValueError: `nearest` is below 1, or a tensor is not one-dimensional.

    Cost: with `nearest`, one product of the different words of a batch with the C candidates.

    Example:
        >>> Allowed(torch.tensor([4, 5, 6, 7]), nearest=2, stop=[5])
        Allowed(4 candidates, the 2 nearest, stop list of 1)
    """

    def __init__(
        self,
        ids: Tensor | Sequence[int] | None = None,
        *,
        nearest: int | None = None,
        groups: Tensor | Sequence[int] | None = None,
        stop: Tensor | Sequence[int] = (),
    ) -> None:
        self.ids = None if ids is None else _whole("ids", ids).unique()
        self.groups = None if groups is None else _whole("groups", groups)
        self.stop = _whole("stop", stop).unique()
        if nearest is not None and (not isinstance(nearest, int) or nearest < 1):
            raise ValueError(f"nearest: expected a whole number, 1 or more, got {nearest}.")
        self.nearest = nearest

    def __repr__(self) -> str:
        parts = ["every row" if self.ids is None else f"{len(self.ids):,} candidates"]
        parts += [] if self.nearest is None else [f"the {self.nearest} nearest"]
        parts += [] if self.groups is None else ["of the same group"]
        parts += [f"stop list of {len(self.stop):,}"] if len(self.stop) else []
        return f"Allowed({', '.join(parts)})"

    def candidates(self, rows: int, never: Tensor) -> Tensor:
        """Return the ids that may be chosen from a table of `rows` rows, int64, shape (C,): not those of `never`.

        Raises:
            ValueError: An id is outside the table, or `groups` has another length.
        """
        ids = torch.arange(rows) if self.ids is None else self.ids
        for name, given in (("allowed", ids), ("stop", self.stop)):
            if len(given) and not 0 <= int(given.min()) <= int(given.max()) < rows:
                worst = int(given.min()) if given.min() < 0 else int(given.max())
                raise ValueError(f"{name}: id {worst} is outside the table, whose ids run from 0 to {rows - 1}.")
        if self.groups is not None and len(self.groups) != rows:
            raise ValueError(f"groups: {len(self.groups)} numbers for a table of {rows} rows. Pass one for each row.")
        return ids.to(never.device)[~torch.isin(ids.to(never.device), never)]

    def may_replace(self, words: Tensor, candidates: Tensor) -> Tensor:
        """Return whether each candidate may stand for each word, bool, shape (P, C), `nearest` aside."""
        may: Tensor = words[:, None] != candidates
        if self.groups is not None:
            groups = self.groups.to(words.device)
            may = may & (groups[words][:, None] == groups[candidates])
        return may

    def nearest_candidates(
        self, words: Tensor, vectors: Tensor, candidates: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest candidates that may replace each word, as indices, shape (P, n), and whether there is one.

        Args:
            words: Ids, shape (P,), and their `vectors`, shape (P, D).
            candidates: Ids, shape (C,), and their vectors, `table`, shape (C, D).
        """
        assert self.nearest is not None
        count = min(self.nearest, len(candidates))
        directions, found = normalize(table, dim=1).T, []
        for part in torch.arange(len(words), device=words.device).split(max(1, _ELEMENTS // max(1, len(candidates)))):
            cosines = normalize(vectors[part], dim=1) @ directions
            found.append(cosines.masked_fill(~self.may_replace(words[part], candidates), -torch.inf).topk(count))
        if not found:
            return words.new_zeros(0, count), torch.zeros(0, count, dtype=torch.bool, device=words.device)
        return torch.cat([top.indices for top in found]), torch.cat([top.values for top in found]) > -torch.inf


def _whole(name: str, given: Tensor | Sequence[int]) -> Tensor:
    tensor = torch.as_tensor(given, dtype=None if len(given) else torch.int64)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        hint = " Pass `mask.nonzero()[:, 0]`." if tensor.dtype == torch.bool else ""
        raise TypeError(f"{name}: expected whole numbers, got {tensor.dtype}.{hint}")
    if tensor.dim() != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {tuple(tensor.shape)}.")
    return tensor.to(torch.int64)
