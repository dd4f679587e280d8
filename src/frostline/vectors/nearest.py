"""The words whose vectors point the same way.

Letters used for shapes in this file:
    V  words          D  numbers of a word
"""

from __future__ import annotations

import numpy as np

from frostline.errors import SelectionError
from frostline.vectors.table import Vectors

_ROWS = 65_536  # rows compared at a time


def near(vectors: Vectors, word: str, count: int = 10) -> list[tuple[str, float]]:
    """The words nearest to `word` by cosine, the nearest first.

    Args:
        vectors: Where to look.
        word: A word that has a vector.
        count: How many words, from 1 up; fewer where there are no more.

    Returns:
        Pairs of word and cosine, from -1 to 1, without `word` itself; 0 where a vector is all zeros. Of words that are
        equally near, the one that stands first in the file.

    Raises:
        SelectionError: `word` has no vector, or `count` is below 1.

    Cost: one pass over the V x D numbers.

    Example:
        >>> near(Vectors(["ice", "snow", "fire"], [[1.0, 0.0], [3.0, 4.0], [-1.0, 0.0]]), "ice")
        [('snow', 0.6), ('fire', -1.0)]
    """
    if count < 1:
        raise SelectionError(f"count: {count} is below 1. Pass how many words to return, such as 10.")
    row, lower = (int(vectors.rows_of([word], lowercase)[0]) for lowercase in (False, True))
    if row < 0:
        hint = f" {word.lower()!r} is." if lower >= 0 else " `cover` says which words are."
        raise SelectionError(f"word: {word!r} is not among the {len(vectors):,} words.{hint}")
    wanted = vectors.matrix[row].astype(np.float64)
    wanted /= np.linalg.norm(wanted) or 1.0
    cosines = np.empty(len(vectors))
    for first in range(0, len(vectors), _ROWS):
        rows = vectors.matrix[first : first + _ROWS].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        cosines[first : first + _ROWS] = rows @ wanted / np.where(norms > 0, norms, 1.0)
    cosines[row] = -np.inf
    order = np.argsort(-cosines, kind="stable")[: min(count, len(vectors) - 1)]
    return [(vectors.words[place], round(float(cosines[place]), 6)) for place in order.tolist()]
