"""Nearest neighbours by cosine: the words whose vectors point in the same direction.

Letters used for shapes in this file:
    V  words          D  dimensions of a vector
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frostline.errors import SelectionError
from frostline.vectors.table import Floats, Vectors
from frostline.vectors.words import Ints

_BLOCK = 65_536  # rows compared at a time


def near(vectors: Vectors, word: str, count: int = 10) -> list[tuple[str, float]]:
    """Return the words nearest to `word` by cosine, the nearest first.

    Args:
        vectors: Where to look.
        word: A word that has a vector.
        count: How many words to return, 1 or more; fewer are returned if `vectors` holds fewer.

    Returns:
        Pairs of word and cosine, from -1 to 1, without `word` itself. The cosine with a zero vector is 0. Equally near
        words are in file order.

    Raises:
        SelectionError: `word` has no vector, or `count` is below 1.

    Cost: one pass over the V x D matrix.

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
    rows, cosines = nearest_rows(vectors.matrix, row, count)
    return [
        (vectors.words[other], round(cosine, 6)) for other, cosine in zip(rows.tolist(), cosines.tolist(), strict=True)
    ]


def nearest_rows(matrix: Floats, row: int, count: int, among: Ints | None = None) -> tuple[Ints, NDArray[np.float64]]:
    """Return the rows of `matrix` nearest to one of its rows by cosine, the nearest first, and their cosines.

    Args:
        matrix: float32, shape (V, D).
        row: The row to compare with; it is not returned.
        count: How many rows to return at most.
        among: The rows to compare, each once. None: all.

    Returns:
        Row ids, int64, and their cosines; equally near rows in the order of `among`.

    Example:
        >>> table = np.array([[1, 0], [0, 1], [2, 0.1], [1, 1]], dtype=np.float32)
        >>> rows, cosines = nearest_rows(table, 0, count=2, among=np.array([0, 1, 3]))
        >>> rows.tolist(), cosines.round(3).tolist()
        ([3, 1], [0.707, 0.0])
    """
    candidates: Ints = np.arange(len(matrix)) if among is None else among
    target = matrix[row].astype(np.float64)
    target /= np.linalg.norm(target) or 1.0
    cosines = np.empty(len(candidates))
    for first in range(0, len(candidates), _BLOCK):
        block = slice(first, first + _BLOCK)
        rows = (matrix[block] if among is None else matrix[among[block]]).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        cosines[block] = rows @ target / np.where(norms > 0, norms, 1.0)
    order = np.argsort(-cosines, kind="stable")
    order = order[candidates[order] != row][:count]
    return candidates[order], cosines[order]
