"""Which words of a vocabulary have a vector: worth a look before every training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frostline.vectors.table import Vectors

_SHOWN = 10  # missing words that are printed


@dataclass(frozen=True)
class Cover:
    """How much of `total` words has a vector: `found` of them, and the `missing` ones in their order."""

    total: int
    found: int
    missing: list[str]

    @property
    def share(self) -> float:
        """Found words among all, from 0 to 1; 1 where there are no words."""
        return self.found / self.total if self.total else 1.0

    def __str__(self) -> str:
        line = f"{self.found:,} of {self.total:,} words have a vector ({self.share:.1%})"
        if not self.missing:
            return line
        more = len(self.missing) - _SHOWN
        return f"{line}; missing: {', '.join(self.missing[:_SHOWN])}{f' and {more:,} more' if more > 0 else ''}"


def cover(words: Sequence[str], vectors: Vectors, lowercase: bool = False) -> Cover:
    """Say which of `words` have a vector.

    Args:
        words: n strings, each counted as often as it is given.
        vectors: Where to look.
        lowercase: A word that is missing but whose `word.lower()` has a vector counts as found.

    Returns:
        Cover: `found`, `missing`, `total` and `share`; prints as one line.

    Cost: O(n log V).

    Example:
        >>> print(cover(["ice", "Snow", "rain"], Vectors(["ice", "snow"], [[1.0], [2.0]]), lowercase=True))
        2 of 3 words have a vector (66.7%); missing: rain
    """
    missing = [words[number] for number in np.flatnonzero(vectors.rows_of(words, lowercase) < 0).tolist()]
    return Cover(len(words), len(words) - len(missing), missing)
