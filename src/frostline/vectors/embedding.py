"""Make an nn.Embedding from a vocabulary and word vectors, and choose which of its rows learn.

Letters used for shapes in this file:
    N  words of the vocabulary          D  dimensions of a vector
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from frostline.errors import SelectionError
from frostline.partial import nothing, rows, train_only
from frostline.printing import listed
from frostline.vectors.sources import Source, as_vectors
from frostline.vectors.table import Floats, Vectors
from frostline.vectors.words import Ints, Words, hash_words, pack, repeated_rows

Learn = Literal["missing", "all", "none"]
Init = Literal["normal", "zeros", "mean"]


def embedding(
    words: Sequence[str],
    vectors: Source,
    learn: Learn = "missing",
    init: Init = "normal",
    padding_idx: int | None = None,
    lowercase: bool = False,
) -> nn.Embedding:
    """Return an nn.Embedding for `words` that starts from their vectors; by default only rows of missing words learn.

    Args:
        words: The vocabulary: N distinct strings; the id of a word is its index.
        vectors: Where the rows of known words come from: Vectors, a path, a dict or gensim's KeyedVectors.
        learn: Which rows learn: "missing", those of words without a vector; "all"; or "none".
        init: How the row of a missing word is initialized: "normal", drawn with the mean and standard deviation of the
            found vectors in each dimension (torch's default generator, so `torch.manual_seed` repeats it); "zeros"; or
            "mean", the mean of the found vectors.
        padding_idx: Id of the padding word, from -N to N - 1: its row is zero and does not learn, known or not.
        lowercase: Use the vector of `word.lower()` for a missing word, if there is one.

    Returns:
        nn.Embedding(N, D), float32, with its own copy of the vectors. With "missing" its weight is a partial tensor:
        known rows keep every bit, and of `parameters()` only the learned rows require a gradient.

    Raises:
        SelectionError: `words` is empty or repeats a word; or none of the words has a vector, which nearly always is a
            mistake (another spelling or language) and would show only as a bad result.
        TypeError: `words` is not a sequence of strings.

    Cost: O(N log V) look-ups and one copy of the N x D matrix.

    Example:
        >>> vectors = Vectors(["ice", "snow"], [[1.0, 0.0], [0.5, 0.5]])
        >>> layer = embedding(["<pad>", "ice", "slush", "snow"], vectors, padding_idx=0)
        >>> layer, layer(torch.tensor([1, 3])).tolist()
        (Embedding(4, 2, padding_idx=0), [[1.0, 0.0], [0.5, 0.5]])
        >>> [tuple(p.shape) for p in layer.parameters() if p.requires_grad]
        [(1, 2)]
    """
    for name, value, legal in (
        ("learn", learn, ("missing", "all", "none")),
        ("init", init, ("normal", "zeros", "mean")),
    ):
        if value not in legal:
            raise SelectionError(f"{name}: {value!r} is not one of {', '.join(map(repr, legal))}.")
    _check_words(words)
    vectors = as_vectors(vectors)
    padding = _padding(padding_idx, len(words))
    known = vectors.rows_of(words, lowercase)
    if padding is not None:
        known[padding] = -1
    ids = np.flatnonzero(known >= 0)
    missing = np.flatnonzero(known < 0)
    missing = missing[missing != padding] if padding is not None else missing
    if len(missing) and not len(ids):
        raise SelectionError(_nothing_found(words, vectors, missing, lowercase))
    weight = torch.zeros(len(words), vectors.dimension)
    found: Floats = vectors.matrix[known[ids]]
    weight.numpy()[ids] = found
    if len(missing) and init != "zeros":
        weight[torch.from_numpy(missing)] = _initial_rows(found, len(missing), init)
    layer = nn.Embedding(len(words), vectors.dimension, padding_idx=padding, _weight=weight)
    if learn != "all":
        train_only(layer, {"weight": rows(missing.tolist()) if learn == "missing" and len(missing) else nothing})
    return layer


def _padding(padding_idx: int | None, count: int) -> int | None:
    if padding_idx is None:
        return None
    if not -count <= padding_idx < count:
        raise SelectionError(
            f"padding_idx: {padding_idx} is outside the {count:,} words, whose ids run from 0 to {count - 1}. "
            "Add the padding word to `words` and pass its index."
        )
    return padding_idx % count


def _check_words(words: Sequence[str]) -> None:
    if isinstance(words, Mapping):
        raise TypeError(
            "words: expected a list, got a mapping. Pass the words in the order of their ids: "
            "`sorted(words, key=words.get)`."
        )
    if not len(words):
        raise SelectionError("words: the list is empty. Pass the vocabulary, one string for each id.")
    if isinstance(words, Words):  # distinct by construction
        return
    blob, offsets = pack(words)
    hashes = hash_words(blob, offsets)
    repeats, _ = repeated_rows(blob, offsets, hashes, np.argsort(hashes))
    if len(repeats):
        names = dict.fromkeys(words[index] for index in repeats.tolist())
        raise SelectionError(
            f"words: listed more than once: {listed(map(repr, names), most=5)}. The id of a word is its index, so list "
            "each once: pass `list(dict.fromkeys(words))`."
        )


def _initial_rows(found: Floats, count: int, init: Init) -> Tensor:
    """Return the initial rows of missing words, shape (count, D)."""
    mean = torch.from_numpy(found.mean(axis=0, dtype=np.float64)).float()
    if init == "mean":
        return mean.expand(count, -1)
    # A single vector has no standard deviation in a dimension: that over its own values is the best guess.
    std = found.std(axis=0 if len(found) > 1 else None, dtype=np.float64)
    return mean + torch.randn(count, found.shape[1]) * torch.as_tensor(std).float()


def _nothing_found(words: Sequence[str], vectors: Vectors, missing: Ints, lowercase: bool) -> str:
    """Return the message of the error that none of the missing words has a vector."""
    names = [words[index] for index in missing.tolist()]
    message = (
        f"words: none of the {len(names):,} words ({_first_three(names)}) is among the {len(vectors):,} words of the "
        f"vectors ({_first_three(vectors.words)})."
    )
    lower = int((vectors.rows_of(names, lowercase=True) >= 0).sum())
    if not lowercase and lower:
        return f"{message} {lower:,} are in lower case: pass `lowercase=True`."
    return f"{message} Check spelling and language, or use a plain nn.Embedding if they should all be learned."


def _first_three(words: Sequence[str]) -> str:
    return ", ".join(map(repr, words[:3])) + (", ..." if len(words) > 3 else "")
