"""Nearest neighbours by cosine: the words whose vectors point in the same direction.

Letters used for shapes in this file:
    V  words          D  dimensions of a vector
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frostline.errors import SelectionError, ShapeError
from frostline.vectors.sources import Source, as_vectors, plain
from frostline.vectors.table import Floats, Vectors
from frostline.vectors.words import Ints

_BLOCK = 65_536  # rows compared at a time


def near(vectors: Source, query: str | ArrayLike, count: int = 10) -> list[tuple[str, float]]:
    """Return the words nearest to a word, to a vector or to an analogy by cosine, the nearest first.

    Args:
        vectors: Where to look: Vectors, a path, a dict or gensim's KeyedVectors.
        query: A word that has a vector; a vector, shape (D,); or words joined by ` + ` and ` - `, blanks around both,
            such as "king - man + woman": their vectors, each of length 1, are added and subtracted.
        count: How many words to return, 1 or more; fewer are returned if `vectors` holds fewer.

    Returns:
        Pairs of word and cosine, from -1 to 1, without the words of `query`. The cosine with a zero vector is 0.
        Equally near words are in file order.

    Raises:
        SelectionError: A word has no vector, or `count` is below 1.
        ShapeError: The vector has another shape, or a value that is not finite.

    Cost: one pass over the V x D matrix.

    Example:
        >>> vectors = Vectors(["ice", "snow", "fire"], [[1.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
        >>> near(vectors, "ice"), near(vectors, [0, 1], count=1), near(vectors, "snow - ice")
        ([('snow', 0.6), ('fire', -1.0)], [('snow', 0.8)], [('fire', 0.447214)])

    Source: the analogies are those of word2vec (3CosAdd).
    """
    if count < 1:
        raise SelectionError(f"count: {count} is below 1. Pass how many words to return, such as 10.")
    vectors = as_vectors(vectors)
    target, rows = _target(vectors, query) if isinstance(query, str) else (_vector(vectors, query), [])
    found, cosines = _nearest(vectors.matrix, target, np.arange(len(vectors)), rows, count)
    return [
        (vectors.words[row], round(cosine, 6)) for row, cosine in zip(found.tolist(), cosines.tolist(), strict=True)
    ]


def _target(vectors: Vectors, query: str) -> tuple[NDArray[np.float64], list[int]]:
    """Return the vector to compare with, and the rows of the words in `query`."""
    parts = [query] if query in vectors else re.split(r" ([+-]) ", query)
    rows = [_row_of(vectors, word) for word in parts[::2]]
    total = np.zeros(vectors.dimension)
    for row, sign in zip(rows, ["+", *parts[1::2]], strict=True):
        vector = vectors.matrix[row].astype(np.float64)
        total += (1 if sign == "+" else -1) * vector / (np.linalg.norm(vector) or 1.0)
    return total, rows


def _row_of(vectors: Vectors, word: str) -> int:
    row, lower = (int(vectors.rows_of([word], lowercase)[0]) for lowercase in (False, True))
    if row < 0:
        hint = f" {word.lower()!r} is." if lower >= 0 else " `cover` says which words are."
        raise SelectionError(f"word: {word!r} is not among the {len(vectors):,} words.{hint}")
    return row


def _vector(vectors: Vectors, query: ArrayLike) -> NDArray[np.float64]:
    target = np.asarray(plain(query), dtype=np.float64)
    if target.shape != (vectors.dimension,) or not np.isfinite(target).all():
        raise ShapeError(
            f"query: expected a word, or a vector of {vectors.dimension} finite numbers, got shape {target.shape}. "
            "Pass one vector, such as vectors['ice']."
        )
    return target


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
    return _nearest(matrix, matrix[row].astype(np.float64), candidates, [row], count)


def _nearest(
    matrix: Floats, target: NDArray[np.float64], candidates: Ints, without: list[int], count: int
) -> tuple[Ints, NDArray[np.float64]]:
    """Return which of the rows `candidates` are nearest to a vector (D,), but for `without`, and their cosines."""
    target = target / (np.linalg.norm(target) or 1.0)
    cosines = np.empty(len(candidates))
    for first in range(0, len(candidates), _BLOCK):
        block = slice(first, first + _BLOCK)
        rows = (matrix[candidates[block]]).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        cosines[block] = rows @ target / np.where(norms > 0, norms, 1.0)
    order = np.argsort(-cosines, kind="stable")
    order = order[~np.isin(candidates[order], without)][:count]
    return candidates[order], cosines[order]
