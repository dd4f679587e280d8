"""What is random in training, as a function of (seed, epoch, paragraph, counter): no state, so no order either.

Letters used for shapes in this file:
    W  words of the text          n  words of a paragraph

Each number has 64 bits, from splitmix64. Word i of a paragraph has the counter i: the upper half of its number decides
whether the word is read, the lower half how wide its window is. Negatives have the counters from 256 on. The kernel
computes the same numbers; `draws` is used by reference.py, and to show what a run is about to do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Numbers = NDArray[np.uint64]

PARAGRAPH = 256  # words of a paragraph at most, and the counter of its first negative
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_LOW = np.uint64(2**32 - 1)


def numbers(key: int, counters: NDArray[np.integer]) -> Numbers:
    """Return the random number of each counter, uint64, in the shape of `counters`.

    Example:
        >>> numbers(0, np.arange(2)).tolist()
        [16294208416658607535, 7960286522194355700]
    """
    z = np.uint64(key) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP)  # modulo 2^64, as in C
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    mixed: Numbers = z ^ (z >> np.uint64(31))
    return mixed


def key_of(key: int, counter: int) -> int:
    """Return one random number, to be the key of others."""
    return int(numbers(key, np.array([counter]))[0])


def keep_thresholds(counts: Ints, sample: float) -> NDArray[np.uint32]:
    """Return for each word, uint32, shape (W,): it is read where a random number of 32 bits is not above.

    Example:
        >>> (keep_thresholds(np.array([999_000, 1000]), sample=1e-3) / 2**32).round(3).tolist()
        [0.033, 1.0]
    """
    share = counts / counts.sum()
    probability = (np.sqrt(share / sample) + 1) * sample / share if sample else np.ones(len(counts))
    return np.minimum(probability * 2**32, 2**32 - 1).astype(np.uint32)


def alias_table(counts: Ints) -> Numbers:
    """Return a table from which a word is drawn with one look, in proportion to the power 0.75 of its count.

    Column c of the table (uint64, shape (W,)) is word c with the probability (upper half) / 2^32, else the word in the
    lower half.

    Example:
        >>> table = alias_table(np.array([81, 16, 1]))  # 27 : 8 : 1
        >>> [int(entry & np.uint64(2**32 - 1)) for entry in table], [round(int(entry) / 2**64, 3) for entry in table]
        ([0, 0, 0], [1.0, 0.667, 0.083])

    Source: Walker's alias method, as Vose computes it.
    """
    weights = counts.astype(np.float64) ** 0.75
    heights: list[float] = (weights * (len(weights) / weights.sum())).tolist()  # 1 on average
    other, threshold = list(range(len(heights))), [2**32 - 1] * len(heights)
    low = [column for column, height in enumerate(heights) if height < 1]
    high = [column for column, height in enumerate(heights) if height >= 1]
    while low and high:
        column, source = low.pop(), high[-1]
        threshold[column], other[column] = min(int(heights[column] * 2**32), 2**32 - 1), source
        heights[source] -= 1 - heights[column]
        if heights[source] < 1:
            low.append(high.pop())
    table: Numbers = (np.array(threshold, dtype=np.uint64) << np.uint64(32)) | np.array(other, dtype=np.uint64)
    return table


class Draws(NamedTuple):
    """What is random in a paragraph of which n words are read."""

    words: Ints  # (n,), the words that are read
    widths: Ints  # (n,), of their windows
    counters: Ints  # (n,), of their first negative


def draws(
    key: int, words: NDArray[np.signedinteger], keep: NDArray[np.uint32], window: int, negatives_per_word: int
) -> Draws:
    """Choose which words of a paragraph are read, and how wide their windows are."""
    bits = numbers(key, np.arange(len(words)))
    index = np.flatnonzero((bits >> np.uint64(32)) <= keep[words])
    low = bits[index] & _LOW
    widths = window - ((low * np.uint64(window)) >> np.uint64(32)).astype(np.int64)
    return Draws(words[index].astype(np.int64), widths, PARAGRAPH + index * negatives_per_word)


def negatives(key: int, counters: Ints, count: int, alias: Numbers) -> Ints:
    """Return `count` words for each of the targets whose first counters are given, int64, (len(counters), count)."""
    bits = numbers(key, counters[:, None] + np.arange(count))
    columns = ((bits >> np.uint64(32)) * np.uint64(len(alias))) >> np.uint64(32)
    entries = alias[columns]
    own = (bits & _LOW) < (entries >> np.uint64(32))
    words: Ints = np.where(own, columns, entries & _LOW).astype(np.int64)
    return words


def batch_words(
    counts: Ints, keep: NDArray[np.uint32], negatives: int, targets_per_word: float, rate: float, square: float
) -> int:
    """Return how many words of the text a batch may have.

    The gradients of a batch are taken before any is applied, so a row that many of them change overshoots, and training
    diverges. So the batch is the smaller, the more frequent the most frequent word is, the higher the learning rate is,
    and the longer the vectors are to begin with.

    Args:
        counts: How often each word occurs, shape (W,).
        keep: See `keep_thresholds`.
        negatives: Of each target.
        targets_per_word: 1 for CBOW.
        rate: Learning rate.
        square: Mean square of the length of a vector at the start.

    Example:
        >>> counts = np.array([10_000] * 5)
        >>> batch_words(counts, keep_thresholds(counts, 0), negatives=5, targets_per_word=1, rate=0.05, square=0.1)
        26
    """
    share, drawn = counts / counts.sum(), counts**0.75 / (counts**0.75).sum()
    kept = share * ((keep + 1.0) / 2**32)
    changes = targets_per_word * (kept + kept.sum() * negatives * drawn).max()  # of a row, for each word
    most = _CHANGES if len(counts) >= _MANY else _CHANGES_OF_FEW
    return int(np.clip(most / changes / max(1.0, rate / _RATE) / max(1.0, square / _SQUARE), _LEAST, _MOST))


# Tried: texts of 2 to 300 words, in a cycle and at random, diverged from 60 changes on, none at 32. 15 million words of
# English did at 4,096 words a batch (250 changes), not at 1,024; from 256 to 1,024 the vectors are equally good.
_CHANGES, _CHANGES_OF_FEW, _MANY = 56, 32, 1000  # of one row in a batch; where words are few, all contexts are alike
_RATE, _SQUARE = 0.05, 5.0
_LEAST, _MOST = 16, 1024
