"""What a run trains on: two tables, which of their rows learn, a text, and how samples are drawn from it.

Letters used for shapes in this file:
    V  rows of the input table    T  rows of the output table (W <= T <= V)
    W  words of the text          S  lines of 16 values in a row       D  dimension

The rows of the words of the text come first in both tables. Rows end on a line of 16 values, so that no two share one:
what a row does not need of its last line is 0 and stays 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.word2vec import sampling
from frostline.word2vec.corpus import Corpus
from frostline.word2vec.settings import Settings

Table = NDArray[Any]  # float32 or float64
Mask = NDArray[np.uint8]

LANES = 16
_BLOCK = 4096  # rows that are drawn at a time


@dataclass(frozen=True)
class Problem:
    """The arguments of every step.

    Attributes:
        settings: How to train.
        corpus: The text.
        input: Rows of words as context, shape (V, 16 S); the vectors are `input[:, :D]`.
        output: Rows of words as targets, shape (T, 16 S).
        input_learns: 1 where a row learns, 0 where it is never written, shape (V,).
        output_learns: The same, shape (T,).
        keep: See `sampling.keep_thresholds`, shape (W,).
        alias: See `sampling.alias_table`, shape (W,).
        batch_words: Words of a batch.
    """

    settings: Settings
    corpus: Corpus
    input: Table
    output: Table
    input_learns: Mask
    output_learns: Mask
    keep: NDArray[np.uint32]
    alias: sampling.Numbers
    batch_words: int

    @property
    def draws_per_word(self) -> int:
        """How many counters of random numbers each word has for its negatives."""
        slots = 2 * self.settings.window + 1 if self.settings.skip_gram else 1
        return slots * (1 + self.settings.negatives)

    @property
    def total_words(self) -> int:
        """Words in all epochs."""
        return self.settings.epochs * self.corpus.size

    def rate(self, words_done: int) -> float:
        """Return the learning rate after so many words."""
        first, last = self.settings.rate, self.settings.min_alpha
        return max(last, first - (first - last) * (words_done / self.total_words))


def problem(
    settings: Settings, corpus: Corpus, input: Table, output: Table, input_learns: Mask, output_learns: Mask
) -> Problem:
    """Return a problem with the sampling tables of its corpus."""
    keep = sampling.keep_thresholds(corpus.counts, settings.sample)
    negatives = 1 if settings.softmax else settings.negatives
    pairs = settings.window + 1 if settings.skip_gram else 1  # targets of a word, on average
    size = sampling.batch_words(corpus.counts, keep, negatives, pairs, settings.rate, _square(input, corpus.counts))
    alias = sampling.alias_table(corpus.counts)
    return Problem(settings, corpus, input, output, input_learns, output_learns, keep, alias, size)


def _square(input: Table, counts: sampling.Ints) -> float:
    """Return the mean square of the length of a row, of the most frequent words."""
    rows = input[: min(len(counts), _BLOCK)].astype(np.float64)
    return float(np.average((rows**2).sum(axis=1), weights=counts[: len(rows)]))


def table(rows: int, dim: int, dtype: str) -> Table:
    """Return zeros, shape (rows, 16 S), each row on lines of the CPU's cache."""
    width = -(-dim // LANES) * LANES
    bytes_ = rows * width * np.dtype(dtype).itemsize
    memory = np.zeros(bytes_ + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + bytes_].view(dtype).reshape(rows, width)


def draw_rows(to: Table, dim: int, seed: int, index: sampling.Ints | None = None) -> None:
    """Fill rows with numbers from -0.5 / D to 0.5 / D, which depend on the seed and the index of the row.

    Args:
        to: The rows, shape (n, 16 S).
        dim: Dimension, D.
        seed: Chooses the numbers.
        index: The index of each row, shape (n,). None: 0 to n - 1.
    """
    key = sampling.key_of(seed, 0)
    for first in range(0, len(to), _BLOCK):
        block = to[first : first + _BLOCK]
        rows = np.arange(first, first + len(block)) if index is None else index[first : first + _BLOCK]
        counters = rows[:, None] * dim + np.arange(dim)
        block[:, :dim] = ((sampling.numbers(key, counters) >> np.uint64(11)) / 2.0**53 - 0.5) / dim
