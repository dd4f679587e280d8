"""What people have in place of `Vectors`: a path, a dict, or the vectors of gensim."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from frostline.errors import ShapeError
from frostline.vectors.load import load
from frostline.vectors.table import Vectors


class KeyedVectors(Protocol):
    """The vectors of gensim, as far as they are read."""

    index_to_key: list[str]
    vectors: Any


Source = Vectors | str | os.PathLike[str] | Mapping[str, ArrayLike] | KeyedVectors


def as_vectors(source: Source) -> Vectors:
    """Return Vectors of anything that holds word vectors.

    Args:
        source: Vectors; the path of a file that `load` reads; a mapping from words to vectors of one length, which may
            be lists, arrays or tensors; or gensim's KeyedVectors (of a model of gensim, `model.wv`).

    Raises:
        VectorFileError: The file cannot be read.
        ShapeError: The vectors of a mapping differ in length, or values are not finite.
        TypeError: It is something else.

    Cost: nothing for Vectors; that of `load` for a path; else one copy of the matrix (none of gensim's).

    Example:
        >>> as_vectors({"ice": [1.0, 0.0], "snow": [0.5, 0.5]})
        Vectors(2 words x 2)
    """
    if isinstance(source, Vectors):
        return source
    if isinstance(source, str | os.PathLike):
        return load(source)
    if isinstance(source, Mapping):
        words = list(source)
        rows = [np.asarray(plain(source[word]), dtype=np.float64) for word in words]
        for word, row in zip(words, rows, strict=True):
            if row.ndim != 1 or row.shape != rows[0].shape:
                raise ShapeError(
                    f"vectors: the vector of {word!r} has shape {row.shape}, that of {words[0]!r} {rows[0].shape}. "
                    "Pass vectors of one length."
                )
        return Vectors(words, np.stack(rows) if rows else np.empty((0, 0)))
    source = getattr(source, "wv", source)
    if hasattr(source, "index_to_key") and hasattr(source, "vectors"):
        return Vectors(source.index_to_key, source.vectors)
    raise TypeError(
        f"vectors: expected Vectors, a path, a dict of word to vector or gensim's KeyedVectors, got a "
        f"{type(source).__name__}. Pass Vectors(words, matrix)."
    )


def plain(row: Any) -> Any:
    """Return a torch tensor as a numpy array, and anything else as it is."""
    return row.detach().float().cpu().numpy() if hasattr(row, "detach") else row
