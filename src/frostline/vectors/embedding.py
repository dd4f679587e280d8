"""From a vocabulary and word vectors to a plain nn.Embedding of which only the rows you name learn.

Letters used for shapes in this file:
    N  words of the vocabulary          D  numbers of a word
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from frostline.errors import SelectionError
from frostline.partial import nothing, rows, train_only
from frostline.vectors.table import Floats, Vectors
from frostline.vectors.words import Ints, Words, hash_words, pack, repeated_rows

Train = Literal["missing", "all", "none"]
Init = Literal["normal", "zeros", "mean"]


def embedding(
    words: Sequence[str],
    vectors: Vectors,
    train: Train = "missing",
    init: Init = "normal",
    padding_idx: int | None = None,
    lowercase: bool = False,
) -> nn.Embedding:
    """An nn.Embedding for `words` with the vectors of the known ones, in which the missing ones learn.

    Args:
        words: The vocabulary: N different strings; the id of a word is its place.
        vectors: Where known words get their rows from.
        train: Which rows learn: "missing", those of words without a vector; "all"; or "none".
        init: How a missing word starts: "normal", drawn with the mean and the spread that the found vectors have in
            each dimension (torch's default generator, so `torch.manual_seed` repeats it); "zeros"; or "mean", the mean
            of the found vectors.
        padding_idx: Id of the padding word, from -N to N - 1: its row is zero and does not learn, known or not.
        lowercase: Give a missing word the vector of its `word.lower()`, where that has one.

    Returns:
        nn.Embedding(N, D), float32, which owns its numbers. With "missing" its weight is a partial tensor: known rows
        keep every bit, and `parameters()` that require a gradient are the learned rows alone.

    Raises:
        SelectionError: Words repeat or there are none; or not one word has a vector, which nearly always is a mistake
            (another spelling or language) and would show only as a bad result.
        TypeError: `words` is not a sequence of strings.

    Cost: O(N log V) look-ups and one copy of the N x D numbers.

    Example:
        >>> vectors = Vectors(["ice", "snow"], [[1.0, 0.0], [0.5, 0.5]])
        >>> layer = embedding(["<pad>", "ice", "slush", "snow"], vectors, padding_idx=0)
        >>> layer, layer(torch.tensor([1, 3])).tolist()
        (Embedding(4, 2, padding_idx=0), [[1.0, 0.0], [0.5, 0.5]])
        >>> [tuple(p.shape) for p in layer.parameters() if p.requires_grad]
        [(1, 2)]
    """
    for name, value, legal in (
        ("train", train, ("missing", "all", "none")),
        ("init", init, ("normal", "zeros", "mean")),
    ):
        if value not in legal:
            raise SelectionError(f"{name}: {value!r} is not one of {', '.join(map(repr, legal))}.")
    _check_words(words)
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
        weight[torch.from_numpy(missing)] = _start(found, len(missing), init)
    layer = nn.Embedding(len(words), vectors.dimension, padding_idx=padding, _weight=weight)
    if train != "all":
        learn = train == "missing" and len(missing)
        train_only(layer, {"weight": rows(missing.tolist()) if learn else nothing})
    return layer


def _padding(padding_idx: int | None, count: int) -> int | None:
    if padding_idx is None:
        return None
    if not -count <= padding_idx < count:
        raise SelectionError(
            f"padding_idx: {padding_idx} is outside the {count:,} words, whose ids run from 0 to {count - 1}. "
            "Put the padding word into `words` and pass its place."
        )
    return padding_idx % count


def _check_words(words: Sequence[str]) -> None:
    if isinstance(words, Mapping):
        raise TypeError(
            "words: is a mapping. Pass the words in the order of their ids: `sorted(words, key=words.get)`."
        )
    if not len(words):
        raise SelectionError("words: there are none. Pass the vocabulary, one string for each id.")
    if isinstance(words, Words):  # different by construction
        return
    blob, offsets = pack(words)
    hashes = hash_words(blob, offsets)
    again = repeated_rows(blob, offsets, hashes, np.argsort(hashes))
    if len(again):
        names = list(dict.fromkeys(words[number] for number in again.tolist()))
        shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
        raise SelectionError(
            f"words: listed more than once: {shown}. The id of a word is its place, so each may stand there once; "
            "pass `list(dict.fromkeys(words))`."
        )


def _start(found: Floats, count: int, init: Init) -> Tensor:
    """How the missing rows start, shape (count, D)."""
    mean = torch.from_numpy(found.mean(axis=0, dtype=np.float64)).float()
    if init == "mean":
        return mean.expand(count, -1)
    # One vector alone has no spread in a dimension: that of its numbers is the best guess.
    spread = found.std(axis=0 if len(found) > 1 else None, dtype=np.float64)
    return mean + torch.randn(count, found.shape[1]) * torch.as_tensor(spread).float()


def _nothing_found(words: Sequence[str], vectors: Vectors, missing: Ints, lowercase: bool) -> str:
    asked = [words[number] for number in missing.tolist()]
    message = (
        f"words: none of the {len(asked):,} words ({_first(asked)}) is among the {len(vectors):,} words of the vectors "
        f"({_first(vectors.words)})."
    )
    lower = int((vectors.rows_of(asked, lowercase=True) >= 0).sum())
    if not lowercase and lower:
        return f"{message} {lower:,} are in lower case: pass `lowercase=True`."
    return f"{message} Check spelling and language, or use a plain nn.Embedding if they should all be learned."


def _first(words: Sequence[str]) -> str:
    return ", ".join(map(repr, words[:3])) + (", ..." if len(words) > 3 else "")
