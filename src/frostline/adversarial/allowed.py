"""Which words may stand for which: candidates, nearest in the vectors, of the same group, and never certain ones.

Letters used for shapes in this file:
    V  rows of the table       D  width of a vector
    C  candidates              P  words to be replaced       n  nearest candidates of each
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

_BLOCK = 64  # scores of which the highest is found at once
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

    def exclude_(self, scores: Tensor, words: Tensor, candidates: Tensor) -> Tensor:
        """Set the score of each candidate that may not stand for a word to -inf, shape (P, C), `nearest` aside."""
        if not len(candidates):
            return scores
        itself = torch.searchsorted(candidates, words).clamp(max=len(candidates) - 1)
        among = (candidates[itself] == words).nonzero()[:, 0]
        scores[among, itself[among]] = -torch.inf
        if self.groups is not None:
            groups = self.groups.to(words.device)
            scores.masked_fill_(groups[words][:, None] != groups[candidates], -torch.inf)
        return scores

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
            found.append(top_k(self.exclude_(cosines, words[part], candidates), count))
        if not found:
            return words.new_zeros(0, count), torch.zeros(0, count, dtype=torch.bool, device=words.device)
        return torch.cat([indices for _, indices in found]), torch.cat([values for values, _ in found]) > -torch.inf


def top_k(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest of each row and their indices, each (P, count), as `topk` does, but faster.

    The highest are in those blocks of a row whose maxima are the highest; a maximum costs much less than a sort.
    """
    columns = scores.shape[1]
    if columns < 4 * _BLOCK * count:
        values, indices = scores.topk(count)
        return values, indices
    padded = pad(scores, (0, -columns % _BLOCK), value=-torch.inf)
    blocks = padded.view(len(scores), -1, _BLOCK)
    best = blocks.amax(2).topk(count).indices  # (P, count)
    some = blocks.gather(1, best[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    values, at = some.topk(count)
    return values, best.gather(1, at // _BLOCK) * _BLOCK + at % _BLOCK


def _whole(name: str, given: Tensor | Sequence[int]) -> Tensor:
    tensor = torch.as_tensor(given, dtype=None if len(given) else torch.int64)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        hint = " Pass `mask.nonzero()[:, 0]`." if tensor.dtype == torch.bool else ""
        raise TypeError(f"{name}: expected whole numbers, got {tensor.dtype}.{hint}")
    if tensor.dim() != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {tuple(tensor.shape)}.")
    return tensor.to(torch.int64)
